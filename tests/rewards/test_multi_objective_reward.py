import math
from typing import Any

import pytest

from stateset_agents.core.reward import (
    CompositeReward,
    EngagementReward,
    HelpfulnessReward,
    RewardFunction,
    RewardResult,
    SafetyReward,
)
from stateset_agents.exceptions import ConfigurationError, RewardError
from stateset_agents.rewards.multi_objective_reward import MultiObjectiveReward
from tests.rewards.made import GOOD, conversation, score
from tests.rewards.test_rewards import Constant


def of(
    *scored: tuple[object, float], aggregation: Any = "weighted_sum", **settings: Any
) -> MultiObjectiveReward:
    return MultiObjectiveReward(
        [
            {"name": f"o{place}", "reward": Constant(value), "weight": weight}
            for place, (value, weight) in enumerate(scored)
        ],
        aggregation=aggregation,
        **settings,
    )


async def value(reward: RewardFunction) -> float:
    return (await score(reward, conversation(*GOOD))).score


async def test_a_weighted_sum_divides_by_the_weights_only_when_normalized() -> None:
    pairs = ((1.0, 3.0), (0.5, 1.0))
    assert await value(of(*pairs)) == pytest.approx((3 + 0.5) / 4)
    assert await value(of(*pairs, normalize=False)) == pytest.approx(3.5)


async def test_the_minimum_is_the_lowest_score_of_those_with_a_weight() -> None:
    pairs = ((0.9, 0.1), (0.4, 0.8), (0.0, 0.0))
    assert await value(of(*pairs, aggregation="min")) == pytest.approx(0.4)


async def test_a_product_has_the_weights_as_exponents() -> None:
    pairs = ((0.25, 1.0), (0.5, 3.0))
    assert await value(of(*pairs, aggregation="product", normalize=False)) == pytest.approx(
        0.25 * 0.5**3
    )
    geometric_mean = (0.25 * 0.5**3) ** (1 / 4)
    assert await value(of(*pairs, aggregation="product")) == pytest.approx(geometric_mean)
    assert await value(of((0.0, 0.1), (1.0, 0.9), aggregation="product")) == 0.0


async def test_normalize_scales_by_the_range_and_cuts_at_its_ends() -> None:
    for given, expected in ((-10.0, 0.0), (0.0, 0.5), (10.0, 1.0), (25.0, 1.0)):
        entry = {"name": "points", "reward": Constant(given), "range": (-10, 10)}
        assert await value(MultiObjectiveReward([entry])) == pytest.approx(expected)
        raw = MultiObjectiveReward([entry], normalize=False)
        assert await value(raw) == pytest.approx(given)


async def test_an_objective_without_turns_counts_whole_at_each_of_them() -> None:
    first = RewardResult(0.5, turn_scores=[1.0, 0.0])
    second = RewardResult(0.5, turn_scores=[0.5, 0.5])
    for aggregation, expected in (
        ("weighted_sum", [(1 + 3 * 0.5 + 4 * 0.1) / 8, (3 * 0.5 + 4 * 0.1) / 8]),
        ("min", [0.1, 0.0]),
        ("product", [0.5 ** (3 / 8) * 0.1 ** (4 / 8), 0.0]),
    ):
        reward = of((first, 1.0), (second, 3.0), (0.1, 4.0), aggregation=aggregation)
        result = await score(reward, conversation(*GOOD))
        assert result.turn_scores == pytest.approx(expected)
    assert (await score(of((0.1, 1.0)), conversation(*GOOD))).turn_scores is None


async def test_a_score_that_is_no_number_is_not_hidden_by_the_range() -> None:
    assert math.isnan(await value(of((math.nan, 1.0), (1.0, 1.0))))


async def test_a_raw_product_of_negative_scores_is_an_error_that_names_the_objective() -> None:
    with pytest.raises(RewardError, match=r"objective 'o0' scored -0\.5"):
        await value(of((-0.5, 0.5), aggregation="product", normalize=False))


def test_every_problem_of_the_objectives_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        MultiObjectiveReward(
            [
                {"name": "a", "reward": Constant(1), "weigth": 1},
                {"name": "a", "reward": "helpful", "weight": -1, "range": (1, 0)},
                "safety",  # type: ignore[list-item]
            ],
            aggregation="mean",  # type: ignore[arg-type]
        )
    text = str(caught.value)
    for part in ("'weigth'", "occurs twice", "'helpful'", "-1", "(1, 0)", "'safety'", "'mean'"):
        assert part in text
    assert len(caught.value.problems) == 7
    with pytest.raises(ConfigurationError, match="empty"):
        MultiObjectiveReward([])
    with pytest.raises(ConfigurationError, match="no objective has a weight"):
        of((1.0, 0.0))


async def test_the_objectives_keep_their_own_scores_and_the_whole_is_part_of_a_composite() -> None:
    reward = MultiObjectiveReward(
        objectives=[
            {"name": "helpfulness", "reward": HelpfulnessReward(), "weight": 0.4},
            {"name": "safety", "reward": SafetyReward(), "weight": 0.3},
            {"name": "engagement", "reward": EngagementReward(), "weight": 0.3},
        ],
        aggregation="weighted_sum",
        normalize=True,
        name="all",
    )
    result = await score(reward, conversation(*GOOD))
    expected = 0.0
    for name, part, weight in (
        ("helpfulness", HelpfulnessReward(), 0.4),
        ("safety", SafetyReward(), 0.3),
        ("engagement", EngagementReward(), 0.3),
    ):
        own = await value(part)
        assert result.breakdown[name] == own
        expected += weight * own
    assert result.score == pytest.approx(expected)
    whole = await score(CompositeReward([reward, Constant(0.0)]), conversation(*GOOD))
    assert whole.score == pytest.approx(expected / 2)
