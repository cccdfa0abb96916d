"""Losses by hand."""

from __future__ import annotations

import math

import pytest
import torch

from stateset_agents.training.losses import (
    grpo_loss,
    gspo_loss,
    importance_weights,
    kl_divergence,
)

MASK = torch.tensor([[True]])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.2, 1.0, -1.2, False),
        (1.5, 1.0, -1.28, True),  # good and already much likelier: no further
        (1.5, -1.0, 1.5, False),  # bad and likelier: push back with full force
        (0.5, -1.0, 0.8, True),  # bad and already much rarer: no further
        (0.5, 1.0, -0.5, False),
    ],
)
def test_the_clip_holds_only_what_goes_further_the_same_way(
    ratio: float, advantage: float, loss: float, clipped: bool
) -> None:
    logprob = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)

    result = grpo_loss(
        logprob,
        torch.zeros(1, 1, dtype=torch.float64),
        torch.tensor([[advantage]]),
        MASK,
        clip_left=0.2,
        clip_right=0.28,
    )
    result.loss.sum().backward()

    assert result.loss.item() == pytest.approx(loss)
    assert bool(result.clipped) is clipped
    assert logprob.grad is not None
    assert logprob.grad.item() == pytest.approx(0 if clipped else -ratio * advantage)


def test_a_sequence_has_one_ratio_the_geometric_mean_of_its_tokens() -> None:
    new = torch.tensor([[-1.0, -2.0, -9.0], [-1.0, -1.0, -1.0]], dtype=torch.float64)
    old = torch.tensor([[-1.2, -2.4, 0.0], [-1.0, -1.0, -1.3]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, True]])

    result = gspo_loss(new, old, torch.ones_like(new), mask, clip_left=0.5, clip_right=0.5)

    # mean log ratios: (0.2 + 0.4) / 2 and 0.3 / 3
    expected = [math.exp(0.3)] * 2 + [0.0] + [math.exp(0.1)] * 3
    assert (-result.loss).flatten().tolist() == pytest.approx(expected)


def test_what_is_not_sampled_may_hold_anything() -> None:
    mask = torch.tensor([[True, False]])
    new = torch.tensor([[-1.0, math.nan]], requires_grad=True)
    other = torch.tensor([[-1.0, math.inf]])

    for loss in (grpo_loss, gspo_loss):
        result = loss(
            new, other, torch.tensor([[1.0, math.nan]]), mask, clip_left=0.2, clip_right=0.2
        )
        assert result.loss.tolist() == [[-1.0, 0.0]]
    assert kl_divergence(new, other, mask).tolist() == [[0.0, 0.0]]


def test_truncated_importance_weights_are_capped_from_above_only() -> None:
    old = torch.tensor([[math.log(0.9), math.log(0.1), math.log(0.3)]])
    sampling = torch.tensor([[math.log(0.1), math.log(0.9), math.log(0.2)]])

    weights = importance_weights(old, sampling, torch.ones_like(old, dtype=torch.bool), cap=2.0)

    assert weights[0].tolist() == pytest.approx([2.0, 1 / 9, 1.5])
