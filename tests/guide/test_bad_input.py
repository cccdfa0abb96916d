"""What a person gets wrong, and the one message that they get: what was given, what is allowed,
what to do; all that is wrong with a configuration at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stateset_agents import (
    ConversationEnvironment,
    Environment,
    EnvironmentState,
    MultiTurnAgent,
    train,
)
from stateset_agents.core.agent import AgentConfig
from stateset_agents.core.memory import ConversationMemory
from stateset_agents.core.reward import (
    CompositeReward,
    HelpfulnessReward,
    SafetyReward,
    reward_function,
)
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.core.value_function import ValueFunction
from stateset_agents.exceptions import ConfigurationError, DataError, RolloutError, StateSetError
from stateset_agents.rewards.multi_objective_reward import MultiObjectiveReward
from stateset_agents.training.callbacks import EarlyStoppingCallback
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.gspo_trainer import GSPOConfig, train_with_gspo

SCENARIOS = [{"id": "a", "user_responses": ["Hello there!"]}]
LEXICAL = HelpfulnessReward(addressing="lexical")


def problems_of(make: Callable[[], object]) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        make()
    return caught.value.problems


def small(**settings: Any) -> TrainingConfig:
    base = {"num_episodes": 4, "num_generations": 2, "bf16": False}
    return TrainingConfig(**{**base, **settings})


# --- configurations: everything at once ---


def test_wrong_values_unknown_keys_and_contradictions_are_told_together() -> None:
    problems = problems_of(
        lambda: TrainingConfig(
            learning_rate="fast",  # type: ignore[arg-type]
            warmup_ratio=3,
            learning_rte=1e-5,  # type: ignore[call-arg]
            num_generation=4,  # type: ignore[call-arg]
            bf16=True,
            fp16=True,
            num_generations=1,
            lora_dropout=0.5,
        )
    )
    begins = [
        "learning_rate: found 'fast' (text), allowed: a valid number",
        "warmup_ratio: found 3 (a whole number), allowed: less than or equal to 1",
        "learning_rte: unknown key; did you mean `learning_rate`? allowed: ",
        "num_generation: unknown key; did you mean `num_generations`?",
        'num_generations=1 leaves advantage_baseline="group"',
        "bf16=True and fp16=True contradict each other",
        "lora_dropout=0.5 has no effect with use_lora=False",
    ]
    for begin in begins:
        assert sum(problem.startswith(begin) for problem in problems) == 1, begin
    assert len(problems) == len(begins)
    assert sum("allowed: eval_steps, " in problem for problem in problems) == 1  # the list, once


def test_a_contradiction_with_what_is_wrong_by_itself_is_not_told() -> None:
    assert [
        line.split(":")[0]
        for line in problems_of(lambda: TrainingConfig(use_lora="perhaps", lora_dropout=0.5))  # type: ignore[arg-type]
    ] == ["use_lora"]


def test_one_setting_under_two_of_its_names_is_told_as_such() -> None:
    (problem,) = problems_of(lambda: TrainingConfig(kl_penalty=0.1, beta=0.2))  # type: ignore[call-arg]
    assert problem == (
        "kl_penalty: is the same setting as `beta` and `kl_coefficient`, and given twice; "
        "give it once"
    )


def test_a_setting_that_there_is_not_cannot_be_assigned() -> None:
    config = TrainingConfig()
    (problem,) = problems_of(lambda: setattr(config, "learning_rte", 1e-5))
    assert problem.startswith("learning_rte: unknown key; did you mean `learning_rate`?")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: AgentConfig(model="gpt2"), ["model_name: missing", "did you mean `model_name`?"]),
        (lambda: HelpfulnessReward(weight="0.5"), ["'HelpfulnessReward' has weight '0.5'"]),
        (
            lambda: CompositeReward([lambda turns: 1, SafetyReward, "safety"]),
            ["rewards[0] is the plain function", "make one: SafetyReward()", "rewards[2] is 'saf"],
        ),
        (lambda: CompositeReward({"a": LEXICAL}), ["give a list of rewards"]),
        (
            lambda: MultiObjectiveReward([{"name": "a", "reward": 3}], "mean", normalize="yes"),
            ["reward is 3", "aggregation is 'mean'; allowed: weighted_sum", "normalize is 'yes'"],
        ),
        (lambda: ConversationEnvironment([]), ["there are no scenarios"]),
        (
            lambda: ConversationEnvironment(
                [{"id": "a"}, "x"], max_turns="3", randomize_scenarios="no"
            ),
            ["user_responses is None", "scenario 1 is a str", "is '3'", "allowed: True, False"],
        ),
        (lambda: ConversationMemory(0, 500), ["max_turns is 0", "summarization_threshold is 500"]),
        (lambda: ValueFunction(768, gamma=2, gae_lambda=-1), ["gamma=2", "gae_lambda=-1"]),
        (
            lambda: GSPOConfig(num_outer_iterations=0, beta=-1),
            ["beta: found -1", "num_outer_iterations: found 0"],
        ),
    ],
)
def test_what_is_wrong_with_a_part_is_told_whole(
    make: Callable[[], object], told: list[str]
) -> None:
    problems = problems_of(make)
    assert len(problems) == len(told)
    for problem, text in zip(problems, told, strict=True):
        assert text in problem


@pytest.mark.parametrize(
    "make", [lambda: ConversationTurn("usr", "Hi"), lambda: ConversationTurn("user", None)]
)
def test_a_turn_has_a_role_that_there_is_and_text(make: Callable[[], object]) -> None:
    with pytest.raises(DataError, match="allowed are the roles system, user, assistant, tool"):
        make()


async def test_a_history_that_is_one_message_is_refused_and_not_read_letter_by_letter() -> None:
    agent = MultiTurnAgent(AgentConfig(model_name="stub://x", use_stub_model=True))
    await agent.initialize()
    for one in ("Hello", {"role": "user", "content": "Hello"}):
        with pytest.raises(DataError, match="a history is a list of messages, and this is one"):
            await agent.generate_response(one)  # type: ignore[arg-type]


# --- training: before anything is played ---


def agent_of(folder: Path) -> MultiTurnAgent:
    return MultiTurnAgent(
        AgentConfig(model_name=str(folder), max_new_tokens=3, torch_dtype="float32")
    )


async def test_parts_that_are_something_else_are_told_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        await train("gpt2", ConversationEnvironment, lambda turns, context=None: 1.0)  # type: ignore[arg-type]
    agent, environment, reward = caught.value.problems
    assert agent.startswith("agent is 'gpt2'; give a MultiTurnAgent, such as MultiTurnAgent(")
    assert environment.startswith("environment is the class ConversationEnvironment; give an ")
    assert "put @reward_function() above it" in reward


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"config": {"learning_rate": 1e-5}}, "give a TrainingConfig"),
        ({"profile": "fast"}, "choose from conservative, balanced, aggressive, experimental"),
        ({"config": TrainingConfig(), "profile": "balanced"}, "put them into the config"),
        ({"config": "small", "callbacks": [print]}, r"callbacks\[0\] is <built-in function print>"),
        ({"config": "small", "callbacks": [EarlyStoppingCallback]}, "give an instance"),
        ({"config": "positions"}, "has 2048 positions, answers included: lower max_prompt_length"),
        ({"config": "targets"}, "no linear layer query_key_value: choose from"),
        ({"config": "small", "resume_from": "nowhere/step_5"}, "no folder nowhere/step_5"),
    ],
)
async def test_what_training_cannot_do_it_says_at_once(
    given: dict[str, Any], told: str, tiny_model_dir: Path
) -> None:
    named = {
        "small": small(),
        "positions": small(max_prompt_length=100_000),
        "targets": small(use_lora=True, lora_target_modules=["q_proj", "query_key_value"]),
    }
    if isinstance(given.get("config"), str):
        given = {**given, "config": named[given["config"]]}
    with pytest.raises(StateSetError, match=told):
        await train(agent_of(tiny_model_dir), ConversationEnvironment(SCENARIOS), LEXICAL, **given)


async def test_gspo_is_not_trained_by_the_settings_of_another_algorithm() -> None:
    agent = MultiTurnAgent(AgentConfig(model_name="x"))
    with pytest.raises(ConfigurationError, match="algorithm='grpo'; give a GSPOConfig"):
        await train_with_gspo(small(), agent, ConversationEnvironment(SCENARIOS), LEXICAL)  # type: ignore[arg-type]


# --- training: environments and rewards of one's own ---


class Talks(Environment):
    """Never ends."""

    async def reset(self, scenario: Any = None) -> EnvironmentState:
        return EnvironmentState([{"role": "user", "content": "Go on."}])

    async def step(self, state: EnvironmentState, action: Any) -> Any:
        user = {"role": "user", "content": "go on " * 100}
        return EnvironmentState([*state.conversation_history, action, user]), user, 0.0, False


class Raises(Talks):
    async def step(self, state: EnvironmentState, action: Any) -> Any:
        raise KeyError("order")


class DoesNotStart(Talks):
    async def reset(self, scenario: Any = None) -> EnvironmentState:
        raise OSError("the database is away")


class StartsWithAMapping(Talks):
    async def reset(self, scenario: Any = None) -> Any:
        return {"conversation_history": []}


class GivesThree(Talks):
    async def step(self, state: EnvironmentState, action: Any) -> Any:
        return state, "Hi", True


@pytest.mark.parametrize(
    ("environment", "error", "told"),
    [
        (Raises(), RolloutError, "all 8 episodes failed; the first, .*KeyError: 'order'"),
        (DoesNotStart(), RolloutError, r"DoesNotStart.reset\(\) raised OSError: the database is"),
        (StartsWithAMapping(), DataError, r"must return an EnvironmentState \(check_environment"),
        (GivesThree(), RolloutError, "must return four: .new_state, user_response, reward, done."),
    ],
)
async def test_an_environment_that_cannot_be_played_is_named_with_what_it_did(
    environment: Environment,
    error: type[Exception],
    told: str,
    tiny_model_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(error, match=told):
        await train(agent_of(tiny_model_dir), environment, LEXICAL, config=small())
    assert caplog.text.count("Traceback") <= 1  # of eight alike


async def test_an_environment_that_never_ends_is_told_of_once(
    tiny_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        config = small(num_episodes=4, gradient_accumulation_steps=2, max_completion_length=64)
        await train(agent_of(tiny_model_dir), Talks(), LEXICAL, config=config)
    assert caplog.text.count("none because Talks said so: its step() must return done=True") == 1


@pytest.mark.parametrize(
    ("gives", "told"),
    [
        ("good", "reward 'mine' gave 'good' for conversation 1 of 8; return a finite number"),
        (None, "reward 'mine' gave None for conversation 1 of 8; return a finite number"),
        (float("nan"), "no reward of this step's 8 conversations is finite: .*'mine' is nan"),
    ],
)
async def test_a_reward_that_gives_no_number_is_named(
    gives: Any, told: str, tiny_model_dir: Path
) -> None:
    @reward_function(name="mine")
    def mine(turns: Any, context: Any = None) -> Any:
        return gives

    reward = CompositeReward([LEXICAL, mine])
    with pytest.raises(StateSetError, match=told):
        await train(
            agent_of(tiny_model_dir), ConversationEnvironment(SCENARIOS), reward, config=small()
        )
