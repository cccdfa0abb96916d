"""How a run's settings and an algorithm's row become one number."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from stateset_agents.training.algorithms import ALGORITHMS
from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.objective import imitation_of, objective_of, weighted_loss
from tests.training.made import TOKEN_ALGORITHMS


def batch_of(**fields: Any) -> TrainingBatch:
    """Two sampled tokens of weights 0.5 and 0.25, advantages 1 and 2."""
    return TrainingBatch(
        **{
            "token_ids": torch.zeros(1, 2, dtype=torch.int64),
            "row_lengths": torch.tensor([2]),
            "loss_mask": torch.tensor([[True, True]]),
            "sampling_logprobs": torch.tensor([[-1.0, -1.0]]),
            "advantages": torch.tensor([[1.0, 2.0]]),
            "loss_weights": torch.tensor([[0.5, 0.25]]),
            "trajectory_index": torch.zeros(1, dtype=torch.int64),
            "group_index": torch.zeros(1, dtype=torch.int64),
            "shared_prefix_lengths": torch.zeros(1, dtype=torch.int64),
            **fields,
        }
    )


def loss_of(batch: TrainingBatch, **settings: Any) -> float:
    policy = torch.tensor([[-1.0, -1.0]])
    return weighted_loss(policy, batch, objective_of(TrainingConfig(**settings)))[0].item()


@pytest.mark.parametrize("algorithm", TOKEN_ALGORITHMS)
def test_what_a_run_leaves_open_is_the_algorithms_and_what_it_sets_holds(algorithm: Any) -> None:
    row = ALGORITHMS[algorithm]
    own = objective_of(TrainingConfig(algorithm=algorithm, bf16=False))
    assert own.loss_aggregation == row.loss_aggregation
    assert own.advantage_baseline == row.advantage_baseline
    assert own.scale_advantages == row.scale_advantages
    assert (own.resampling_rounds, own.overlong_buffer) == (
        row.resampling_rounds,
        row.overlong_buffer,
    )

    # values that are False or 0 are settings too
    given = objective_of(
        TrainingConfig(
            algorithm=algorithm,
            bf16=False,
            loss_aggregation="token_sum",
            advantage_baseline="none",
            scale_advantages=False,
            resampling_rounds=0,
            overlong_buffer=0.0,
        )
    )
    assert given.loss_aggregation == "token_sum"
    assert given.advantage_baseline == "none"
    assert (given.scale_advantages, given.resampling_rounds, given.overlong_buffer) == (False, 0, 0)


def test_on_policy_the_loss_is_the_weighted_sum_of_minus_the_advantages() -> None:
    assert loss_of(batch_of()) == pytest.approx(-(0.5 * 1 + 0.25 * 2))


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        # the engine gave the first token a third and the second twice of what training gives them
        ({"importance_sampling_cap": None}, (1, 1)),
        ({"importance_sampling_cap": 2.0}, (2, 0.5)),
        ({"importance_sampling": "mask", "importance_sampling_cap": 2.0}, (0, 0.5)),
        (
            {
                "importance_sampling": "mask",
                "importance_sampling_cap": 5.0,
                "importance_sampling_floor": 0.6,
            },
            (3, 0),
        ),
        ({"importance_sampling_level": "sequence", "importance_sampling_cap": 1.2}, (1.2, 1.2)),
    ],
)
def test_tokens_are_weighed_by_how_much_likelier_training_finds_them(
    settings: dict[str, Any], weights: tuple[float, float]
) -> None:
    sampling = torch.tensor([[-1.0 - math.log(3), -1.0 + math.log(2)]])

    loss = loss_of(batch_of(sampling_logprobs=sampling), **settings)

    assert loss == pytest.approx(-(0.5 * 1 * weights[0] + 0.25 * 2 * weights[1]))


def test_the_divergence_is_added_by_its_coefficient_and_not_weighed_by_importance() -> None:
    batch = batch_of(
        reference_logprobs=torch.tensor([[-1.0, -2.0]]),
        sampling_logprobs=torch.tensor([[-1.0, -9.0]]),
        advantages=torch.zeros(1, 2),
    )

    for estimator, divergence in (("k1", 1.0), ("k2", 0.5), ("k3", math.exp(-1))):
        loss = loss_of(batch, kl_coefficient=0.1, kl_estimator=estimator)
        assert loss == pytest.approx(0.25 * 0.1 * divergence)


def test_imitation_follows_every_token_whatever_the_run_is_trained_with() -> None:
    run = objective_of(
        TrainingConfig(algorithm="sapo", kl_coefficient=0.1, importance_sampling_cap=0.5)
    )
    policy = torch.tensor([[-1.0, -3.0]], requires_grad=True)
    batch = batch_of(advantages=torch.ones(1, 2), reference_logprobs=torch.tensor([[-5.0, -5.0]]))

    weighted_loss(policy, batch, imitation_of(run))[0].backward()

    # the gradient of the weighted negative log-likelihood
    assert policy.grad is not None
    assert policy.grad.tolist() == [[-0.5, -0.25]]
