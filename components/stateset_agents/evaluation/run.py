"""Playing the held-out scenarios with a policy, and scoring what was said.

Owns which scenarios are played and that every policy meets the same ones with the same seeds. It
does not know how policies are loaded or compared.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stateset_agents.core.agent import AgentConfig, GenerationSettings, MultiTurnAgent
from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.core.reward import RewardFunction
from stateset_agents.core.rubric import Rubric, check_rubric
from stateset_agents.core.trajectory import MultiTurnTrajectory, TrajectoryGroup
from stateset_agents.evaluation.config import EvaluationConfig
from stateset_agents.evaluation.results import (
    EvaluatedConversation,
    PolicyName,
    PolicyResult,
    RubricVerdict,
)
from stateset_agents.exceptions import EvaluationError
from stateset_agents.inference.engine import Engine
from stateset_agents.rollout.collect import collect_groups
from stateset_agents.rollout.scoring import score_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Scenario = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy to play: what to call it, and the engine that speaks with its weights."""

    name: PolicyName
    title: str
    engine: Engine
    version: str | None = None


def select_scenarios(scenarios: Sequence[Mapping[str, Any]], per_intent: int) -> list[Scenario]:
    """The scenarios to play, by id; of each intent at most `per_intent` (0 = all).

    Raises:
        EvaluationError: there is none.
    """
    if not scenarios:
        raise EvaluationError(
            "there is no held-out scenario to evaluate on; give some intents the split heldout"
        )
    chosen: dict[str, list[Scenario]] = defaultdict(list)
    for scenario in sorted(scenarios, key=lambda one: str(one["id"])):
        intent = str(scenario.get("intent"))
        if per_intent == 0 or len(chosen[intent]) < per_intent:
            chosen[intent].append(dict(scenario))
    return sorted(
        (one for several in chosen.values() for one in several), key=lambda one: str(one["id"])
    )


async def play(
    candidate: Candidate,
    scenarios: Sequence[Scenario],
    reward_function: RewardFunction,
    settings: GenerationSettings,
    config: EvaluationConfig,
    *,
    on_conversation: Callable[[], None] | None = None,
) -> PolicyResult:
    """Play every scenario once with every seed, all at once, and score them.

    The random numbers of an answer depend on (seed, scenario, turn) alone, so they are the same for
    every policy. Each conversation is scored by itself: no part of the reward sees the others.

    Args:
        candidate: the policy.
        scenarios: those of `select_scenarios`.
        reward_function: the one that training used.
        settings: how answers are sampled.
        config: seeds and turns.
        on_conversation: called as each conversation ends, for a progress bar.

    Raises:
        RolloutError: every conversation failed.
        RewardError: a reward raised, or is not finite.
    """
    spoken = AgentConfig(**{**settings.model_dump(), "model_name": candidate.title})
    agent = MultiTurnAgent(spoken, engine=candidate.engine)
    environment = ConversationEnvironment(scenarios, max_turns=config.max_turns)

    def ended(_: MultiTurnTrajectory) -> None:
        if on_conversation is not None:
            on_conversation()

    async def play_seed(seed: int) -> list[TrajectoryGroup]:
        return await collect_groups(
            agent, environment, scenarios, num_generations=1, seed=seed, on_episode=ended
        )

    started = time.perf_counter()
    by_seed = await asyncio.gather(*(play_seed(seed) for seed in config.seeds))
    seconds = time.perf_counter() - started
    await score_groups([group for groups in by_seed for group in groups], reward_function)
    return PolicyResult(
        name=candidate.name,
        title=candidate.title,
        version=candidate.version,
        seconds=seconds,
        conversations=tuple(
            _evaluated(group, seed)
            for seed, groups in zip(config.seeds, by_seed, strict=True)
            for group in groups
        ),
    )


def _evaluated(group: TrajectoryGroup, seed: int) -> EvaluatedConversation:
    """The only conversation of a group, with its rubric's verdicts."""
    trajectory = group.trajectories[0]
    verdicts: tuple[RubricVerdict, ...] = ()
    given = group.scenario.get("rubric")
    if given is not None and not trajectory.failed:
        rubric = given if isinstance(given, Rubric) else Rubric.model_validate(given)
        answers = [turn.content for turn in trajectory.assistant_turns]
        verdicts = tuple(
            RubricVerdict(found.item.kind, found.item.description, found.met, found.item.weight)
            for found in check_rubric(rubric, answers).items
        )
    return EvaluatedConversation(group.scenario, seed, trajectory, verdicts)


def measure_fluency(
    policies: Sequence[PolicyResult],
    base_model: PreTrainedModel,
    config: EvaluationConfig,
    *,
    on_scenario: Callable[[], None] | None = None,
) -> list[PolicyResult]:
    """The same policies, with `log_likelihood` in the conversations of the first `fluency_seeds`.

    Conversations of one scenario are measured together, whoever spoke, so its opening goes through
    the model once.

    Args:
        policies: what was played.
        base_model: in eval mode; its tokenizer is the one of the policies.
        config: for how many seeds.
        on_scenario: called after each scenario, for a progress bar.
    """
    from stateset_agents.evaluation.fluency import answer_log_likelihoods

    seeds = set(config.seeds[: config.fluency_seeds])
    wanted: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, policy in enumerate(policies):
        for place, one in enumerate(policy.conversations):
            if one.seed in seeds and not one.failed:
                wanted[one.key[0]].append((number, place))
    groups = [
        [policies[number].conversations[place].trajectory for number, place in places]
        for places in wanted.values()
    ]
    found = answer_log_likelihoods(base_model, groups, on_group=on_scenario)
    value_of = {
        place: value
        for places, values in zip(wanted.values(), found, strict=True)
        for place, value in zip(places, values, strict=True)
    }
    return [
        replace(
            policy,
            conversations=tuple(
                replace(one, log_likelihood=value_of.get((number, place)))
                for place, one in enumerate(policy.conversations)
            ),
        )
        for number, policy in enumerate(policies)
    ]
