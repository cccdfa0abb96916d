"""Advantages by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from stateset_agents.exceptions import TrainingError
from stateset_agents.training.advantages import (
    groups_to_replace,
    groups_without_spread,
    trajectory_advantages,
    turn_advantages,
)
from stateset_agents.training.batching import StepRows
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.objective import Objective, objective_of

GROUPS = torch.tensor([0, 0, 0, 0, 1, 1])
# the guide's group: mean 0.75, squared deviations 0.0025, 0.0225, 0.0225, 0.0025 over n - 1 = 3
REWARDS = torch.tensor([0.7, 0.9, 0.6, 0.8, 0.4, 0.4], dtype=torch.float64)
GUIDE_STD = math.sqrt(0.05 / 3)


def objective(**settings: Any) -> Objective:
    return objective_of(TrainingConfig(**settings))


def test_a_group_is_compared_with_itself() -> None:
    advantages = trajectory_advantages(REWARDS, GROUPS).tolist()

    expected = [d / (GUIDE_STD + 1e-4) for d in (-0.05, 0.15, -0.15, 0.05)]
    assert advantages[:4] == pytest.approx(expected, abs=1e-12)


def test_a_group_with_equal_rewards_teaches_nothing_and_is_counted() -> None:
    # 0.1 + 0.2 style rewards: their mean is not exactly the reward itself
    rewards = torch.tensor([0.1] * 3 + [0.2, 0.3], dtype=torch.float64)
    groups = torch.tensor([0, 0, 0, 1, 1])

    advantages = trajectory_advantages(rewards, groups)

    assert advantages[:3].tolist() == [0, 0, 0]
    assert advantages[3] < 0 < advantages[4]
    assert groups_without_spread(rewards, groups) == 1


def test_one_survivor_of_a_group_teaches_nothing() -> None:
    assert trajectory_advantages(torch.tensor([0.9]), torch.tensor([0])).tolist() == [0]


def test_without_scaling_it_is_the_distance_to_the_mean() -> None:
    advantages = trajectory_advantages(REWARDS, GROUPS, scale=False).tolist()

    assert advantages == pytest.approx([-0.05, 0.15, -0.15, 0.05, 0, 0], abs=1e-12)


def test_the_baseline_may_be_the_batch_or_none() -> None:
    rewards, groups = torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1])

    batch = trajectory_advantages(rewards, groups, baseline="batch", scale=False)
    none = trajectory_advantages(rewards, groups, baseline="none", scale=False)

    assert batch.tolist() == [-0.5, 0.5, 0.5, -0.5]
    assert none.tolist() == [0, 1, 1, 0]


def test_a_reward_that_is_no_number_is_an_error_that_says_whose() -> None:
    with pytest.raises(TrainingError, match=r"trajectories \[1, 3\]"):
        trajectory_advantages(torch.tensor([0.1, math.nan, 0.3, math.inf]), torch.zeros(4))


def test_a_turn_is_compared_with_the_same_turn_of_its_group_alone() -> None:
    turns = [[0.0, 1.0], [1.0, 1.0], [0.5], [0.9, 0.1]]
    groups = torch.tensor([0, 0, 1, 1])

    advantages = turn_advantages(turns, groups, scale=False)

    # group 0: turn 0 has mean 0.5, turn 1 is equal throughout; group 1: turn 1 is there once
    expected = [[-0.5, 0.0], [0.5, 0.0], [-0.2, 0.0], [0.2, 0.0]]
    torch.testing.assert_close(advantages, torch.tensor(expected, dtype=torch.float64))


def test_a_discount_credits_a_turn_with_what_follows_it() -> None:
    turns = [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]

    advantages = turn_advantages(turns, torch.tensor([0, 0]), discount=0.5, scale=False)

    # returns of the first: 0 + 0.5 * (0 + 0.5 * 1), 0.5 * 1, 1; each minus half of itself
    assert advantages.tolist() == [[0.125, 0.25, 0.5], [-0.125, -0.25, -0.5]]


def test_left_out_of_its_own_baseline_a_conversation_is_compared_with_the_others() -> None:
    rewards, groups = torch.tensor([1.0, 0.0, 0.5, 0.2, 0.4]), torch.tensor([0, 0, 0, 1, 1])

    advantages = trajectory_advantages(rewards, groups, baseline="leave_one_out", scale=False)

    # the others of the first group have means 0.25, 0.75 and 0.5
    torch.testing.assert_close(
        advantages, torch.tensor([0.75, -0.75, 0.0, -0.2, 0.2], dtype=torch.float64)
    )


def test_left_out_and_scaled_it_is_divided_by_the_groups_deviation() -> None:
    advantages = trajectory_advantages(
        torch.tensor([1.0, 0.0, 0.5]), torch.zeros(3), baseline="leave_one_out", scale=True
    )

    # squared deviations 0.25, 0.25, 0 over n - 1 = 2
    expected = [0.75 / (0.5 + 1e-4), -0.75 / (0.5 + 1e-4), 0.0]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-12)


def test_normalised_over_the_batch_a_good_group_is_better_than_a_bad_one() -> None:
    rewards, groups = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([0, 0, 1, 1])

    advantages = trajectory_advantages(rewards, groups, baseline="batch")

    # mean 0.5, squared deviations 4 * 0.25 over n - 1 = 3
    size = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    assert advantages.tolist() == pytest.approx([size, size, -size, -size])


def test_one_conversation_alone_has_nothing_to_be_compared_with_whatever_the_baseline() -> None:
    for baseline in ("group", "leave_one_out", "batch"):
        alone = trajectory_advantages(torch.tensor([0.9]), torch.zeros(1), baseline=baseline)
        assert alone.tolist() == [0], baseline


def rows_of(rewards: list[float], groups: list[int], turns: list[list[float]]) -> StepRows:
    return StepRows(
        rewards=torch.tensor(rewards, dtype=torch.float64),
        group_index=torch.tensor(groups),
        turn_rewards=list(turns),
    )


def test_groups_to_replace_have_no_two_different_rewards_or_no_conversation_left() -> None:
    # of the four groups that were played the third failed throughout
    rows = rows_of([0.1, 0.1, 0.1, 0.1, 0.5, 0.7], [0, 0, 1, 1, 3, 3], turns=[[0.1]] * 6)

    assert groups_to_replace(rows, 4, objective()) == [0, 1, 2]
    # the whole step's mean is no reason to keep a group without spread
    assert groups_to_replace(rows, 4, objective(algorithm="reinforce++")) == [0, 1, 2]


def test_with_turns_credited_a_group_whose_turns_differ_is_kept_at_equal_sums() -> None:
    turns = [[0.5, 1.0], [0.5, 0.0], [0.5], [0.5, 0.3]]
    rows = rows_of([0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1], turns)

    assert groups_to_replace(rows, 2, objective()) == [0, 1]
    # one turn that differs is enough; turn 1 of the second group was reached once, and compared
    # with nothing
    assert groups_to_replace(rows, 2, objective(credit="turn")) == [1]
