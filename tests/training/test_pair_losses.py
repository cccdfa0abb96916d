"""Losses on preference pairs, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from stateset_agents.training.pair_losses import PairLogprobs, pair_loss


def pairs(chosen: float, rejected: float, *, tokens: tuple[float, float] = (2, 4)) -> PairLogprobs:
    """One pair of which the reference gives both answers log-probs of -1."""
    one = [torch.tensor([value], dtype=torch.float64) for value in (chosen, rejected, -1, -1)]
    return PairLogprobs(*one, torch.tensor([tokens[0]]), torch.tensor([tokens[1]]))


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        # chosen 2 nats likelier than under the reference, rejected 4 less likely: h = 6, h' = 2
        ("sigmoid", math.log(1 + math.exp(-3))),
        ("hinge", 0.0),
        ("ipo", 1.0),
        ("robust", math.log(1 + math.exp(-3))),
        ("sigmoid_norm", math.log(1 + math.exp(-1))),
    ],
)
def test_a_pair_that_the_policy_has_learnt(variant: Any, expected: float) -> None:
    loss = pair_loss(pairs(1.0, -5.0), variant=variant, beta=0.5)

    assert loss.tolist() == pytest.approx([expected])


def test_before_training_every_pair_pulls_at_full_strength() -> None:
    untrained = pairs(-1.0, -1.0)

    assert pair_loss(untrained, variant="sigmoid", beta=0.5).item() == pytest.approx(math.log(2))
    assert pair_loss(untrained, variant="hinge", beta=0.5).item() == 1.0


def test_robust_to_flipped_labels_the_loss_is_unbiased() -> None:
    given, flipped = pairs(0.0, -2.0), pairs(-2.0, 0.0)
    clean = pair_loss(given, variant="sigmoid", beta=0.5)

    noisy = [
        pair_loss(labelled, variant="robust", beta=0.5, label_smoothing=0.2)
        for labelled in (given, flipped)
    ]

    # a fifth of the labels is the wrong way round
    assert (0.8 * noisy[0] + 0.2 * noisy[1]).item() == pytest.approx(clean.item())


def test_an_answer_without_tokens_counts_as_one_of_one_token() -> None:
    loss = pair_loss(pairs(0.0, -1.0, tokens=(0, 1)), variant="sigmoid_norm", beta=1.0)

    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"variant": "robust", "label_smoothing": 0.5}, "allowed is 0 up to, not including, 0.5"),
        ({"variant": "ipo", "label_smoothing": 0.1}, 'no effect with variant="ipo"'),
    ],
)
def test_label_smoothing_that_cannot_work_says_why(settings: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        pair_loss(pairs(0.0, 0.0), beta=0.1, **settings)
