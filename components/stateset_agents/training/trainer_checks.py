"""What a trainer refuses: agents that cannot be trained, steps that hold nothing to train on.

Owns these messages, and the warning of a policy that speaks and is not the one that is trained.
Settings that contradict each other are `config.py`'s.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence

from stateset_agents.core.agent import MultiTurnAgent
from stateset_agents.core.environment import Environment
from stateset_agents.core.reward import problem_of_reward
from stateset_agents.exceptions import ConfigurationError, TrainingError
from stateset_agents.training.batching import StepRows
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.demonstrations import Demonstration
from stateset_agents.training.preferences import Preference

_log = logging.getLogger(__name__)
_LAST_TRAINER: weakref.WeakKeyDictionary[MultiTurnAgent, weakref.ref[object]] = (
    weakref.WeakKeyDictionary()
)


def check_parts(agent: object, environment: object, reward_function: object) -> None:
    """Raises:
    ConfigurationError: every one of the three that is something else, or an agent that cannot be
        trained.
    """
    wanted: list[tuple[str, object, type, str]] = [
        ("agent", agent, MultiTurnAgent, "MultiTurnAgent(AgentConfig(model_name=...))"),
        ("environment", environment, Environment, "ConversationEnvironment(scenarios=[...])"),
    ]
    problems = [
        f"{name} is {_told(given)}; give {'an' if name == 'environment' else 'a'} "
        f"{kind.__name__}, such as {example}"
        for name, given, kind, example in wanted
        if not isinstance(given, kind)
    ]
    if problem := problem_of_reward(reward_function, "the reward function"):
        problems.append(problem)
    if problems:
        raise ConfigurationError(problems)
    assert isinstance(agent, MultiTurnAgent)  # else it is among the problems
    check_agent(agent)


def _told(given: object) -> str:
    return f"the class {given.__name__}" if isinstance(given, type) else f"{given!r:.80}"


def check_agent(agent: MultiTurnAgent) -> None:
    """Raises:
    ConfigurationError: settings of generation with which training cannot work.
    """
    problems = []
    if agent.config.use_stub_model:
        problems.append(
            "use_stub_model=True: a stub has no weights to train; name a model's folder in "
            "model_name and leave use_stub_model out"
        )
    if agent.config.temperature == 0:
        problems.append(
            "temperature=0: greedy answers are all alike, so a group teaches nothing; use a "
            "temperature above 0, such as 1.0"
        )
    if agent.config.repetition_penalty != 1:
        problems.append(
            f"repetition_penalty={agent.config.repetition_penalty}: answers would be drawn from "
            "another distribution than the one whose gradient is taken; train with 1.0 (a reward "
            "against repetition does what the penalty does)"
        )
    if problems:
        raise ConfigurationError(problems)


def tell_if_it_starts_over(agent: MultiTurnAgent, trainer: object) -> None:
    """Warn where another trainer has trained this agent: training starts from `model_name`."""
    last = _LAST_TRAINER.get(agent)
    if last is not None and last() is not trainer:
        _log.warning(
            "this agent was trained before, and training starts from %s again, without what it "
            "learned: to go on, give train() a checkpoint in resume_from, or save the agent and "
            "name that folder in model_name",
            agent.config.model_name,
        )
    _LAST_TRAINER[agent] = weakref.ref(trainer)


def check_demonstrations(config: TrainingConfig, demonstrations: Sequence[Demonstration]) -> None:
    """Raises:
    ConfigurationError: a warm start that has nothing to imitate.
    """
    if config.warm_start_steps and not demonstrations:
        raise ConfigurationError(
            f"warm_start_steps={config.warm_start_steps} needs demonstrations, and none were "
            "given: pass Trainer(demonstrations=...), or set warm_start_steps=0"
        )


def check_preferences(config: TrainingConfig, preferences: Sequence[Preference]) -> None:
    """Raises:
    ConfigurationError: pairs where none are read, or none where they are.
    """
    if config.pairs_from == "preferences" and not preferences:
        raise ConfigurationError(
            'pairs_from="preferences" needs preference pairs, and none were given: pass '
            'Trainer(preferences=...), or set pairs_from="rollouts", which makes pairs of groups'
        )
    if preferences and config.pairs_from != "preferences":
        raise ConfigurationError(
            f"{len(preferences)} preference pairs were given, and algorithm={config.algorithm!r} "
            f'with pairs_from="{config.pairs_from}" plays scenarios: set algorithm="dpo" and '
            'pairs_from="preferences", or leave the pairs out'
        )


def check_rows(rows: StepRows, config: TrainingConfig) -> None:
    """Raises:
    TrainingError: every conversation was left out for its opening's length.
    """
    if rows.rows or not rows.counts["prompt_too_long"]:
        return
    raise TrainingError(
        f"every conversation of this step opens with more than "
        f"max_prompt_length={config.max_prompt_length} tokens, so none can be trained on: raise "
        "max_prompt_length, or shorten the system prompt and the scenarios' context"
    )


def sampling_warning(step: int, metrics: Mapping[str, float], config: TrainingConfig) -> str | None:
    """What to tell of step `step` if the engine's log-probs are further from training's than
    `sampling_difference_limit`, None otherwise.
    """
    difference = metrics.get("sampling_difference_mean", 0.0)
    if difference <= config.sampling_difference_limit:
        return None
    return (
        f"step {step}: the log-probs that the engine sampled with differ from training's by "
        f"{difference:.3g} nats on the mean of the tokens; sampling_difference_limit is "
        f"{config.sampling_difference_limit:.3g}. The policy that speaks is not the one that is "
        "trained, and the gradient is biased as far as importance sampling does not correct it. "
        "What usually causes it: torch_dtype of the agent and bf16 of the training that do not "
        "match, lora_dropout, or an engine that did not take the new weights"
    )
