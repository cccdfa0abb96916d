"""Advantages from values, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from stateset_agents.core.value_estimates import generalized_advantages, whitened


def test_what_the_environment_says_between_two_answers_takes_no_discount() -> None:
    rewards = torch.tensor([[0.0, 5.0, 1.0, 7.0]])
    values = torch.tensor([[0.4, math.nan, 0.6, math.inf]])
    sampled = torch.tensor([[True, False, True, False]])

    advantages, returns = generalized_advantages(
        rewards, values, sampled, discount=0.5, trace_decay=0.5
    )

    # token 2: 1 - 0.6; token 0: (0 + 0.5 * 0.6 - 0.4) + 0.25 * 0.4
    assert advantages[0].tolist() == pytest.approx([0.0, 0.0, 0.4, 0.0])
    assert returns[0].tolist() == pytest.approx([0.4, 0.0, 1.0, 0.0])


def test_a_trace_decay_of_1_leaves_the_discounted_rewards_less_the_value() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 0.25, 0.125]])
    sampled = torch.ones(1, 3, dtype=torch.bool)

    advantages, returns = generalized_advantages(
        rewards, values, sampled, discount=0.5, trace_decay=1.0
    )

    assert returns[0].tolist() == pytest.approx([1 + 1 + 0.75, 2 + 1.5, 3])
    assert advantages[0].tolist() == pytest.approx([2.25, 3.25, 2.875])


def test_whitened_tokens_have_mean_0_and_variance_1_whatever_the_others_hold() -> None:
    values = torch.tensor([[1.0, math.nan], [3.0, 5.0]])
    sampled = torch.tensor([[True, False], [True, True]])

    result = whitened(values, sampled)

    assert result.tolist() == [pytest.approx([-1.0, 0.0]), pytest.approx([0.0, 1.0])]


def test_one_token_none_and_equal_ones_are_whitened_to_0() -> None:
    values = torch.tensor([[2.0, 2.0]])

    for sampled in ([[True, True]], [[True, False]], [[False, False]]):
        assert whitened(values, torch.tensor(sampled)).tolist() == [[0, 0]]
