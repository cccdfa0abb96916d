"""Scoring: a reward for every conversation of a step, in one call.

Owns what reward functions are told about a conversation, and what is demanded of their results. It
does not know what rewards measure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from stateset_agents.core.environment import Scenario
from stateset_agents.core.reward import RewardFunction, RewardResult, Scorable
from stateset_agents.core.rubric import Rubric, parse_rubric
from stateset_agents.core.trajectory import ConversationTurn, MultiTurnTrajectory, TrajectoryGroup
from stateset_agents.exceptions import DataError, RewardError, RolloutError, StateSetError
from stateset_agents.inference.engine import FinishReason


async def score_groups(groups: Sequence[TrajectoryGroup], reward_function: RewardFunction) -> None:
    """Score every trajectory that did not fail, all in one `compute_rewards`, and fill in place
    `episode_reward`, `reward_parts`, each assistant turn's `reward` where the reward function tells
    turns apart, and `metadata["reward"]`.

    A failed trajectory keeps reward 0 and no parts; count it by `failed`, do not average it.

    Raises:
        DataError: a scenario's rubric is not one.
        RewardError: the reward function raised, or gave something that is not a finite number.
        RolloutError: every trajectory failed; the first one's error is in the message.
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
    _check_some_are_alive(groups, num_alive=len(scored))
    results = await _compute_rewards(reward_function, conversations)
    for trajectory, result in zip(scored, results, strict=True):
        _fill(trajectory, result, reward_function.name)


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


def _check_some_are_alive(groups: Sequence[TrajectoryGroup], num_alive: int) -> None:
    failed = [
        trajectory for group in groups for trajectory in group.trajectories if trajectory.failed
    ]
    if failed and num_alive == 0:
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


def _fill(trajectory: MultiTurnTrajectory, result: RewardResult, name: str) -> None:
    where = trajectory.trajectory_id
    parts = result.breakdown or {name: result.score}
    trajectory.episode_reward = _finite(result.score, name, where)
    trajectory.reward_parts = {part: _finite(score, part, where) for part, score in parts.items()}
    trajectory.metadata["reward"] = result.metadata
    if result.turn_scores is None:
        return
    answers = trajectory.assistant_turns
    if len(result.turn_scores) != len(answers):
        raise RewardError(
            f"reward {name!r} gave {len(result.turn_scores)} turn_scores for the {len(answers)} "
            f"assistant turns of {where}; one each is needed, or None"
        )
    for turn, score in zip(answers, result.turn_scores, strict=True):
        turn.reward = _finite(score, name, where)


def _finite(score: Any, name: str, where: str) -> float:
    if isinstance(score, Real) and math.isfinite(score):
        return float(score)
    raise RewardError(
        f"reward {name!r} gave {score!r} for {where}; a score is a finite number, most often in "
        "[0, 1]"
    )
