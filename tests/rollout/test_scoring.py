"""Scoring: what a reward function is told, and what is accepted from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from stateset_agents.core.reward import RewardFunction, RewardResult
from stateset_agents.core.rubric import Rubric
from stateset_agents.core.trajectory import (
    ConversationTurn,
    MultiTurnTrajectory,
    StopReason,
    TokenSample,
    TrajectoryGroup,
)
from stateset_agents.exceptions import DataError, RewardError, RolloutError
from stateset_agents.inference.engine import FinishReason
from stateset_agents.rollout.scoring import check_some_have_rewards, part_means, score_groups
from stateset_agents.rollout.statistics import rollout_statistics

ITEM = {"kind": "ask_for", "description": "asks for the number", "any_of": [["order number"]]}


class Listening(RewardFunction):
    """Gives each conversation the result it was made with, and keeps what it was told."""

    def __init__(self, result: Any) -> None:
        super().__init__(name="listening")
        self.result = result
        self.told: list[dict[str, Any]] = []

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        assert context is not None
        self.told.append(context)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result  # type: ignore[no-any-return]


def answered(text: str, reason: FinishReason = FinishReason.STOP) -> ConversationTurn:
    sample = TokenSample((1, 2), (3, 4, 5), (-1.0, -1.0, -1.0), reason)
    return ConversationTurn("assistant", text, sample=sample)


def trajectory(name: str, *answers: ConversationTurn) -> MultiTurnTrajectory:
    turns = [turn for answer in answers for turn in (ConversationTurn("user", "Hm?"), answer)]
    samples = [answer.sample for answer in answers if answer.sample]
    return MultiTurnTrajectory(name, turns=turns, samples=samples)


def failed(name: str) -> MultiTurnTrajectory:
    return MultiTurnTrajectory(
        name, turns=[], stop_reason=StopReason.FAILED, error=f"RuntimeError: {name} broke"
    )


def group(*trajectories: MultiTurnTrajectory, **scenario: Any) -> TrajectoryGroup:
    return TrajectoryGroup("g", {"id": "s", **scenario}, list(trajectories))


async def test_a_reward_is_told_scenario_rubric_truncation_and_siblings() -> None:
    first = trajectory("a", answered("One."), answered("Two", FinishReason.LENGTH))
    second = trajectory("b", ConversationTurn("assistant", "Said without the model."))
    reward = Listening(RewardResult(0.5))
    scenario_group = group(first, second, failed("c"), rubric={"items": [ITEM]})
    await score_groups([scenario_group], reward)
    told, told_second = reward.told
    assert told["scenario"] is scenario_group.scenario
    assert told["rubric"] == Rubric.model_validate({"items": [ITEM]})
    assert told["truncated"] == [False, True]
    assert told_second["truncated"] == [False]
    assert told["group"] == [second.turns]
    assert told_second["group"] == [first.turns]


@pytest.mark.parametrize(
    "rubric", [[ITEM], {"items": [ITEM]}, Rubric.model_validate({"items": [ITEM]})]
)
async def test_a_rubric_comes_in_three_forms(rubric: Any) -> None:
    reward = Listening(RewardResult(0.5))
    await score_groups([group(trajectory("a", answered("One.")), rubric=rubric)], reward)
    assert reward.told[0]["rubric"].items[0].kind == "ask_for"


async def test_a_rubric_that_is_none_names_scenario_and_key() -> None:
    wrong = [{**ITEM, "kind": "sing"}]
    with pytest.raises(DataError, match=r"'s': rubric\.items\.0\.kind.*'sing'"):
        await score_groups(
            [group(trajectory("a", answered("One.")), rubric=wrong)], Listening(RewardResult(1.0))
        )


async def test_scores_parts_and_turn_scores_are_filled_in() -> None:
    scored = trajectory("a", answered("One."), answered("Two."))
    result = RewardResult(0.7, {"form": 1, "content": 0.4}, {"why": "short"}, [0.2, 0.9])
    await score_groups([group(scored, failed("b"))], Listening(result))
    assert scored.episode_reward == 0.7
    assert scored.reward_parts == {"form": 1.0, "content": 0.4}
    assert [turn.reward for turn in scored.assistant_turns] == [0.2, 0.9]
    assert scored.metadata["reward"] == {"why": "short"}


async def test_a_reward_without_parts_is_its_own_part() -> None:
    scored = trajectory("a", answered("One."))
    await score_groups([group(scored)], Listening(RewardResult(0.25)))
    assert scored.reward_parts == {"listening": 0.25}


async def test_numbers_of_numpy_are_numbers() -> None:
    scored = trajectory("a", answered("One."))
    half = np.float32(0.5)
    result = RewardResult(half, {"form": np.int64(1)}, turn_scores=[half])  # type: ignore[arg-type]
    await score_groups([group(scored)], Listening(result))
    assert (scored.episode_reward, scored.reward_parts) == (0.5, {"form": 1.0})
    assert type(scored.episode_reward) is float


async def test_a_failed_trajectory_gets_no_reward() -> None:
    broken = failed("b")
    await score_groups(
        [group(trajectory("a", answered("One.")), broken)], Listening(RewardResult(0.5))
    )
    assert (broken.episode_reward, broken.reward_parts) == (0.0, {})


@pytest.mark.parametrize(
    ("result", "named"),
    [
        (RewardResult(math.nan), "listening"),
        (RewardResult(0.5, {"form": math.inf}), "form"),
        (RewardResult(0.5, turn_scores=[math.nan]), "listening"),
        (RewardResult(0.5, turn_scores=[0.1, 0.2]), "2 turn_scores for the 1"),
        (ValueError("no dictionary"), "listening.*no dictionary"),
    ],
)
async def test_a_reward_that_is_no_finite_number_is_named(result: Any, named: str) -> None:
    with pytest.raises(RewardError, match=named):
        await score_groups([group(trajectory("a", answered("One.")))], Listening(result))


@pytest.mark.parametrize(
    "result",
    [
        RewardResult(math.nan),
        RewardResult(-math.inf),
        RewardResult(0.5, {"form": math.inf}),
        RewardResult(0.5, turn_scores=[math.nan]),
    ],
)
async def test_tolerant_scoring_leaves_out_the_one_whose_reward_is_not_finite(
    result: RewardResult,
) -> None:
    class OneIsOdd(Listening):
        async def compute_reward(
            self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
        ) -> RewardResult:
            return result if turns[-1].content == "odd" else RewardResult(0.25)

    odd, even = trajectory("a", answered("odd")), trajectory("b", answered("even"))
    reward = OneIsOdd(None)
    groups = [group(odd, even)]
    await score_groups(groups, reward, tolerant=True)

    assert (odd.has_reward, even.has_reward) == (False, True)
    assert math.isnan(odd.episode_reward)
    assert even.episode_reward == 0.25
    check_some_have_rewards(groups, reward)


async def test_rewards_none_of_which_is_finite_are_an_error_that_names_the_reward() -> None:
    reward = Listening(RewardResult(math.nan, {"form": math.nan, "content": 1.0}))
    groups = [group(trajectory("a", answered("One.")), failed("b"))]
    await score_groups(groups, reward, tolerant=True)

    with pytest.raises(RewardError, match=r"'listening' gave no finite number for a .*'form'"):
        check_some_have_rewards(groups, reward)


async def test_tolerant_scoring_leaves_it_to_the_caller_that_everything_failed() -> None:
    reward = Listening(RewardResult(1.0))
    groups = [group(failed("a"), failed("b"))]
    await score_groups(groups, reward, tolerant=True)

    assert reward.told == []
    with pytest.raises(RolloutError, match=r"all 2 episodes.*RuntimeError: a broke"):
        check_some_have_rewards(groups, reward)


@pytest.mark.parametrize("given", [np.float32(0.5), np.int64(1), np.float64(0.25)])
async def test_numbers_of_numpy_are_rewards(given: Any) -> None:
    scored = trajectory("a", answered("One."))
    await score_groups([group(scored)], Listening(given))
    assert scored.episode_reward == float(given)
    assert type(scored.episode_reward) is float


async def test_a_step_in_which_everything_failed_says_why() -> None:
    with pytest.raises(RolloutError, match=r"all 2 episodes.*RuntimeError: a broke"):
        await score_groups([group(failed("a"), failed("b"))], Listening(RewardResult(1.0)))


def test_statistics_are_those_worked_out_by_hand() -> None:
    one = trajectory("a", answered("One."), answered("Two", FinishReason.LENGTH))
    one.stop_reason = StopReason.MAX_TURNS
    two = trajectory("b", answered("One."))
    broken = failed("c")
    broken.samples = list(two.samples)
    assert rollout_statistics([group(one, two, broken)]) == {
        "rollout/episodes": 3,
        "rollout/failed": 1,
        "rollout/sampled_tokens": 12,
        "rollout/stopped/completed": 1,
        "rollout/stopped/max_turns": 1,
        "rollout/stopped/context_full": 0,
        "rollout/answers_mean": 1.5,
        "rollout/answer_tokens_mean": 3.0,
        "rollout/answer_tokens_max": 3,
        "rollout/context_tokens_max": 5,
        "rollout/truncated_fraction": 1 / 3,
    }


def test_statistics_of_failures_alone_have_no_means() -> None:
    numbers = rollout_statistics([group(failed("a"))])
    assert numbers["rollout/failed"] == 1
    assert not [name for name in numbers if "mean" in name or "fraction" in name]


def test_a_part_s_mean_is_over_the_conversations_that_have_it() -> None:
    with_both, with_one = trajectory("a"), trajectory("b")
    with_both.reward_parts = {"rubric": 0.2, "judge": 0.9}
    with_one.reward_parts = {"rubric": 0.6}

    assert part_means([with_both, with_one]) == {"judge": 0.9, "rubric": pytest.approx(0.4)}
    assert part_means([]) == {}
