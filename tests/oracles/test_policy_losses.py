"""Our policy losses and their gradients are TRL's, to 1e-9 in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.batching import StepRow, token_weights
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.losses import kl_divergence
from stateset_agents.training.objective import objective_of, weighted_loss
from tests.oracles.reference_values import load_reference

# name of the reference case -> the settings under which ours must be the same
CASES: dict[str, dict[str, Any]] = {
    "grpo_token": {"algorithm": "grpo"},
    "grpo_token_kl0.04": {"algorithm": "grpo", "kl_coefficient": 0.04},
    "dapo_token": {"loss_aggregation": "token_mean"},
    "dapo_token_kl0.04": {"loss_aggregation": "token_mean", "beta": 0.04},
    "bnpo_token": {"loss_aggregation": "token_mean"},
    "dr_grpo_token": {"loss_aggregation": "fixed_length"},
    "dr_grpo_token_kl0.04": {"loss_aggregation": "fixed_length", "kl_penalty": 0.04},
    "gspo_seq_3e-4_4e-4": {"algorithm": "gspo"},
    "gspo_seq_wide0.2": {"algorithm": "gspo", "clip_range_left": 0.2, "clip_range_right": 0.2},
}


def _reference_batch(inputs: dict[str, Any], config: TrainingConfig) -> TrainingBatch:
    mask = (torch.tensor(inputs["completion_mask"]) * torch.tensor(inputs["tool_mask"])).bool()
    rows = [
        StepRow(tuple(range(4)), tuple(row), (0.0,) * 4, trajectory=n, group=0)
        for n, row in enumerate(mask.tolist())
    ]
    weights = token_weights(rows, objective_of(config).loss_aggregation, max_completion_length=4)
    double = torch.float64
    old = torch.tensor(inputs["old"], dtype=double)
    return TrainingBatch(
        token_ids=torch.zeros(3, 4, dtype=torch.int64),
        row_lengths=torch.tensor([4, 4, 4]),
        loss_mask=mask,
        sampling_logprobs=old,
        advantages=torch.tensor(inputs["adv"], dtype=double)[:, None] * mask,
        loss_weights=torch.tensor(weights, dtype=double)[:, None] * mask,
        trajectory_index=torch.arange(3),
        group_index=torch.zeros(3, dtype=torch.int64),
        shared_prefix_lengths=torch.zeros(3, dtype=torch.int64),
        old_logprobs=old,
        reference_logprobs=torch.tensor(inputs["ref"], dtype=double),
    )


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_trl(case: str) -> None:
    reference = load_reference("policy_losses")
    config = TrainingConfig(**CASES[case])
    batch = _reference_batch(reference["inputs"], config)
    logprobs = torch.tensor(reference["inputs"]["logp"], dtype=torch.float64, requires_grad=True)

    loss, _ = weighted_loss(logprobs, batch, objective_of(config))
    loss.backward()

    expected = reference["cases"][case]
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-9)
    torch.testing.assert_close(
        logprobs.grad, torch.tensor(expected["grad"], dtype=torch.float64), rtol=0, atol=1e-9
    )


def test_a_capped_importance_weight_scales_the_loss_as_in_trl() -> None:
    # the reference has a weight of 0.5 on every token: sampling log-probs ln 2 above the old ones
    reference = load_reference("policy_losses")
    config = TrainingConfig(loss_aggregation="token_mean", importance_sampling_cap=0.5)
    batch = _reference_batch(reference["inputs"], config)
    logprobs = torch.tensor(reference["inputs"]["logp"], dtype=torch.float64, requires_grad=True)

    loss, _ = weighted_loss(logprobs, batch, objective_of(config))
    loss.backward()

    expected = reference["cases"]["dapo_tis0.5"]
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-9)
    torch.testing.assert_close(
        logprobs.grad, torch.tensor(expected["grad"], dtype=torch.float64), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimators_are_those_of_verl(estimator: Any) -> None:
    expected = load_reference("pair_losses_and_gae")[f"verl_kl_{estimator}"]
    policy = torch.tensor([[-0.5, -1.2]], dtype=torch.float64)
    reference = torch.tensor([[-0.4, -1.5]], dtype=torch.float64)

    divergence = kl_divergence(
        policy, reference, torch.ones_like(policy, dtype=torch.bool), estimator=estimator
    )

    assert divergence[0].tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("aggregation", "mode"),
    [("token_mean", "token-mean"), ("sequence_mean", "seq-mean-token-mean")],
)
def test_aggregations_are_those_of_verl(aggregation: Any, mode: str) -> None:
    expected = load_reference("pair_losses_and_gae")[f"verl_agg_{mode}"]
    losses = [[1.0, 2, 3, 4], [5, 6, 0, 0], [7, 0, 9, 0]]
    masks = [(True,) * 4, (True, True, False, False), (True, False, True, False)]
    rows = [StepRow((0,) * 4, mask, (0.0,) * 4, n, 0) for n, mask in enumerate(masks)]

    weights = token_weights(rows, aggregation, max_completion_length=4)

    total = sum(
        weight * sum(loss for loss, sampled in zip(row, mask, strict=True) if sampled)
        for weight, row, mask in zip(weights, losses, masks, strict=True)
    )
    # verl adds 1e-8 to a row's length, hence the wider tolerance
    assert total == pytest.approx(expected, abs=1e-7)
