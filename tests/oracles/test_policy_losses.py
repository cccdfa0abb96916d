"""Our policy losses and their gradients are TRL's, to 1e-9 in float64."""

from __future__ import annotations

import math
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
    "dapo_token": {"algorithm": "dapo"},
    "dapo_token_kl0.04": {"algorithm": "dapo", "beta": 0.04},
    "bnpo_token": {"algorithm": "bnpo", "clip_range_right": 0.28},
    "bnpo_token_kl0.04": {"algorithm": "bnpo", "clip_range_right": 0.28, "beta": 0.04},
    "dr_grpo_token": {"algorithm": "dr_grpo", "clip_range_right": 0.28},
    "dr_grpo_token_kl0.04": {
        "algorithm": "dr_grpo",
        "clip_range_right": 0.28,
        "kl_penalty": 0.04,
    },
    # the reference's cap of 5 is one of the ratio itself
    "cispo_token": {"algorithm": "cispo"},
    "cispo_token_kl0.04": {"algorithm": "cispo", "beta": 0.04},
    "sapo_token": {"algorithm": "sapo"},
    "sapo_token_kl0.04": {"algorithm": "sapo", "beta": 0.04},
    "gspo_seq_3e-4_4e-4": {"algorithm": "gspo"},
    "gspo_seq_wide0.2": {"algorithm": "gspo", "clip_range_left": 0.2, "clip_range_right": 0.2},
    "grpo_delta1.1": {"algorithm": "grpo", "clip_range_right": 0.2, "ratio_cap": 1.1},
    "grpo_kl0.04_biascorr": {
        "algorithm": "grpo",
        "clip_range_right": 0.2,
        "beta": 0.04,
        "kl_bias_correction": True,
    },
    # every token's weight is 0.5 there: our cap of 0.5 on weights of 1
    "dapo_tis0.5": {"algorithm": "dapo", "clip_range_right": 0.2, "importance_sampling_cap": 0.5},
}
# LUSPO and VESPO are no rows of our table.
LEFT_OUT = {"luspo_seq", "vespo_token"}


def reference_batch(inputs: dict[str, Any], config: TrainingConfig) -> TrainingBatch:
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


def loss_and_gradient(reference: dict[str, Any], settings: dict[str, Any]) -> tuple[float, Any]:
    config = TrainingConfig(**settings)
    logprobs = torch.tensor(reference["inputs"]["logp"], dtype=torch.float64, requires_grad=True)
    loss, _ = weighted_loss(
        logprobs, reference_batch(reference["inputs"], config), objective_of(config)
    )
    loss.backward()
    return loss.item(), logprobs.grad


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_trl(case: str) -> None:
    reference = load_reference("policy_losses")

    loss, gradient = loss_and_gradient(reference, CASES[case])

    expected = reference["cases"][case]
    assert loss == pytest.approx(expected["loss"], abs=1e-9)
    torch.testing.assert_close(
        gradient, torch.tensor(expected["grad"], dtype=torch.float64), rtol=0, atol=1e-9
    )


def test_every_reference_case_is_compared() -> None:
    assert set(load_reference("policy_losses")["cases"]) == set(CASES) | LEFT_OUT


@pytest.mark.parametrize("case", ["gspo_seq_3e-4_4e-4", "gspo_seq_wide0.2"])
def test_gspo_token_gives_what_gspo_gives_when_a_row_has_one_advantage(case: str) -> None:
    reference = load_reference("policy_losses")

    loss, gradient = loss_and_gradient(reference, {**CASES[case], "algorithm": "gspo_token"})

    expected = reference["cases"][case]
    assert loss == pytest.approx(expected["loss"], abs=1e-9)
    torch.testing.assert_close(
        gradient, torch.tensor(expected["grad"], dtype=torch.float64), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimators_are_those_of_verl(estimator: Any) -> None:
    expected = load_reference("pair_losses_and_gae")[f"verl_kl_{estimator}"]
    policy = torch.tensor([[-0.5, -1.2]], dtype=torch.float64)
    reference = torch.tensor([[-0.4, -1.5]], dtype=torch.float64)
    sampled = torch.ones_like(policy, dtype=torch.bool)

    divergence = kl_divergence(policy, reference, sampled, estimator=estimator)
    corrected = kl_divergence(
        policy, reference, sampled, estimator=estimator, old_logprobs=policy - math.log(1.5)
    )

    assert divergence[0].tolist() == pytest.approx(expected, abs=1e-9)
    # the policy has made both tokens half again as likely as they were
    assert corrected[0].tolist() == pytest.approx([1.5 * value for value in expected], abs=1e-9)


@pytest.mark.parametrize(
    ("aggregation", "mode"),
    [
        ("token_mean", "token-mean"),
        ("token_sum", "token-sum"),
        ("sequence_mean", "seq-mean-token-mean"),
        ("sequence_sum", "seq-mean-token-sum"),
        ("fixed_length", "seq-mean-token-sum-norm"),
    ],
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
    # verl adds 1e-8 to a row's length when it takes the mean over a row
    assert total == pytest.approx(expected, abs=1e-7 if aggregation == "sequence_mean" else 1e-9)
