"""Losses on pairs are TRL's, and advantages from values are verl's, to 1e-9 in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stateset_agents.core.value_estimates import generalized_advantages, whitened
from stateset_agents.training.pair_losses import PairLogprobs, pair_loss
from stateset_agents.training.reward_model import bradley_terry_loss
from tests.oracles.reference_values import load_reference


def double(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("case", "margins"), [("bt_center0.01", None), ("bt_margin_center0.01", [0.1, 0.2])]
)
def test_the_reward_models_loss_is_that_of_trl(case: str, margins: list[float] | None) -> None:
    expected = load_reference("pair_losses_and_gae")[case]

    loss = bradley_terry_loss(
        double([1.2, -0.3]),
        double([0.4, 0.5]),
        None if margins is None else double(margins),
        center_coefficient=0.01,
    )

    assert loss.item() == pytest.approx(expected, abs=1e-9)


def reference_pairs() -> PairLogprobs:
    logprobs = double(
        [[-0.5, -1.2, -0.3], [-0.9, -0.4, -1.1], [-1.5, -0.2, -0.6], [-0.3, -0.8, -2]]
    )
    mask = double([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]])
    sums, tokens = (logprobs * mask).sum(1), mask.sum(1)
    return PairLogprobs(
        sums[:2], sums[2:], double([-2.1, -1.6]), double([-2.2, -2.9]), tokens[:2], tokens[2:]
    )


@pytest.mark.parametrize("variant", ["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm"])
def test_preference_losses_are_those_of_trl(variant: Any) -> None:
    expected = load_reference("pair_losses_and_gae")[f"dpo_{variant}"]

    losses = pair_loss(
        reference_pairs(),
        variant=variant,
        beta=0.1,
        label_smoothing=0.1 if variant == "robust" else 0.0,
    )

    assert losses.shape == (2,)
    assert losses.mean().item() == pytest.approx(expected, abs=1e-9)


def test_advantages_from_values_step_over_the_environments_tokens_as_in_verl() -> None:
    expected = load_reference("pair_losses_and_gae")
    sampled = torch.tensor([[True, True, False, True, True]])

    advantages, returns = generalized_advantages(
        double([[0, 0, 0, 0, 1]]),
        double([[0.1, 0.2, 9, 0.4, 0.5]]),
        sampled,
        discount=0.99,
        trace_decay=0.95,
    )

    of_sampled = [0, 1, 3, 4]  # what verl gives for the environment's token is never used
    # verl divides the sum of the advantages by their number + 1e-8 for their mean, hence the wider
    # tolerance of what is whitened
    for ours, name, tolerance in (
        (returns, "verl_gae_returns", 1e-9),
        (whitened(advantages, sampled), "verl_gae_whitened_adv", 2e-8),
    ):
        theirs = [expected[name][token] for token in of_sampled]
        assert ours[0, of_sampled].tolist() == pytest.approx(theirs, abs=tolerance)
        assert ours[0, 2] == 0
