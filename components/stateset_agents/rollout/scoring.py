"""Scoring: a reward for every conversation of a step, in one call.

Owns what reward functions are told about a conversation, and what is demanded of their results. It
does not know what rewards measure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from statistics import fmean
from typing import Any

from stateset_agents.core.environment import Scenario
from stateset_agents.core.reward import RewardFunction, RewardResult, Scorable
from stateset_agents.core.rubric import Rubric, parse_rubric
from stateset_agents.core.trajectory import ConversationTurn, MultiTurnTrajectory, TrajectoryGroup
from stateset_agents.exceptions import DataError, RewardError, RolloutError, StateSetError
from stateset_agents.inference.engine import FinishReason


async def score_groups(
    groups: Sequence[TrajectoryGroup], reward_function: RewardFunction, *, tolerant: bool = False
) -> None:
    """Score every trajectory that did not fail, all in one `compute_rewards`, and fill in place
    `episode_reward`, `reward_parts`, each assistant turn's `reward` where the reward function tells
    turns apart, and `metadata["reward"]`.

    A failed trajectory keeps reward 0 and no parts; count it by `failed`, do not average it.

    With `tolerant` a trajectory of which a score is NaN or infinite gets the reward NaN and has
    `has_reward` False; whether enough are left, `check_some_have_rewards` tells.

    Raises:
        DataError: a scenario's rubric is not one.
        RewardError: the reward function raised, or gave something that is not a number; without
            `tolerant` also one that is not finite.
        RolloutError: every trajectory failed, and not `tolerant`.
    """
    scored, conversations = [], []
    for group in groups:
        rubric = _parse_rubric(group.scenario)
        alive = [trajectory for trajectory in group.trajectories if not trajectory.failed]
        for trajectory in alive:
            siblings = [other.turns for other in alive if other is not trajectory]
            context = _reward_context(group.scenario, rubric, trajectory, siblings)
            scored.append(trajectory)
            conversations.append((trajectory.turns, context))
    if not tolerant:
        _check_some_are_alive(groups)
    if not scored:
        return
    results = await _compute_rewards(reward_function, conversations)
    for trajectory, result in zip(scored, results, strict=True):
        finite = _fill(trajectory, result, reward_function.name)
        if not finite and not tolerant:
            raise RewardError(_not_finite(trajectory, reward_function.name))
        if not finite:
            trajectory.episode_reward = math.nan


def check_some_have_rewards(
    groups: Sequence[TrajectoryGroup], reward_function: RewardFunction
) -> None:
    """Demand that one trajectory at least can be trained on.

    Raises:
        RolloutError: every trajectory failed; the first one's error is in the message.
        RewardError: the reward of each that did not fail is NaN or infinite.
    """
    _check_some_are_alive(groups)
    alive = [one for group in groups for one in group.trajectories if not one.failed]
    if alive and not any(trajectory.has_reward for trajectory in alive):
        raise RewardError(
            f"no reward of this step's {len(alive)} conversations is finite: "
            f"{_not_finite(alive[0], reward_function.name)}. Single ones are left out and counted "
            "(reward/nonfinite)"
        )


def part_means(trajectories: Iterable[MultiTurnTrajectory]) -> dict[str, float]:
    """By part of the reward, in alphabetical order, the mean over the conversations that have it:
    one that a reward does not apply to is no conversation in which it was 0.
    """
    scores: dict[str, list[float]] = {}
    for trajectory in trajectories:
        for part, score in trajectory.reward_parts.items():
            scores.setdefault(part, []).append(score)
    return {part: fmean(scores[part]) for part in sorted(scores)}


def _reward_context(
    scenario: Scenario,
    rubric: Rubric | None,
    trajectory: MultiTurnTrajectory,
    siblings: list[list[ConversationTurn]],
) -> dict[str, Any]:
    """What `core.reward` promises to reward functions."""
    return {
        "scenario": scenario,
        "rubric": rubric,
        "truncated": [
            turn.sample is not None and turn.sample.finish_reason is FinishReason.LENGTH
            for turn in trajectory.assistant_turns
        ],
        "group": siblings,
    }


def _parse_rubric(scenario: Scenario) -> Rubric | None:
    try:
        return parse_rubric(scenario.get("rubric"))
    except ValueError as error:
        raise DataError(
            [f"scenario {scenario.get('id')!r}: {problem}" for problem in str(error).splitlines()]
        ) from error


def _check_some_are_alive(groups: Sequence[TrajectoryGroup]) -> None:
    played = [trajectory for group in groups for trajectory in group.trajectories]
    failed = [trajectory for trajectory in played if trajectory.failed]
    if failed and len(failed) == len(played):
        raise RolloutError(
            f"all {len(failed)} episodes failed; the first, {failed[0].trajectory_id}, with: "
            f"{failed[0].error}. Its traceback is in the log"
        )


async def _compute_rewards(
    reward_function: RewardFunction, conversations: Sequence[Scorable]
) -> list[RewardResult]:
    try:
        results = await reward_function.compute_rewards(conversations)
    except StateSetError:
        raise
    except Exception as error:
        raise RewardError(
            f"reward {reward_function.name!r} raised {type(error).__name__}: {error}"
        ) from error
    if len(results) != len(conversations):
        raise RewardError(
            f"reward {reward_function.name!r} gave {len(results)} results for "
            f"{len(conversations)} conversations; one each is needed"
        )
    return results


def _fill(trajectory: MultiTurnTrajectory, result: RewardResult, name: str) -> bool:
    """True when every number of the result is finite."""
    where = trajectory.trajectory_id
    parts = result.breakdown or {name: result.score}
    trajectory.episode_reward = _number(result.score, name, where)
    trajectory.reward_parts = {part: _number(score, part, where) for part, score in parts.items()}
    trajectory.metadata["reward"] = result.metadata
    told = result.turn_scores or []
    answers = trajectory.assistant_turns
    if result.turn_scores is not None and len(told) != len(answers):
        raise RewardError(
            f"reward {name!r} gave {len(told)} turn_scores for the {len(answers)} "
            f"assistant turns of {where}; one each is needed, or None"
        )
    for turn, score in zip(answers, told, strict=False):
        turn.reward = _number(score, name, where)
    return not _numbers_not_finite(trajectory, name)


def _number(score: Any, name: str, where: str) -> float:
    if isinstance(score, Real):
        return float(score)
    raise RewardError(
        f"reward {name!r} gave {score!r} for {where}; a score is a finite number, most often in "
        "[0, 1]"
    )


def _numbers_not_finite(trajectory: MultiTurnTrajectory, name: str) -> dict[str, float]:
    """By what they are of: the reward, its parts, its turns."""
    numbers = {f"reward {name!r}": trajectory.episode_reward}
    numbers |= {f"its part {part!r}": value for part, value in trajectory.reward_parts.items()}
    numbers |= {
        f"its turn {place}": turn.reward
        for place, turn in enumerate(trajectory.assistant_turns)
        if turn.reward is not None
    }
    return {what: value for what, value in numbers.items() if not math.isfinite(value)}


def _not_finite(trajectory: MultiTurnTrajectory, name: str) -> str:
    found = _numbers_not_finite(trajectory, name)
    listed = ", ".join(f"{what} is {value}" for what, value in found.items())
    return (
        f"reward {name!r} gave no finite number for {trajectory.trajectory_id} ({listed}); a score "
        "is a finite number, most often in [0, 1]"
    )
