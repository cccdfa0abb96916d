"""What may not change a training step, and what must be exactly zero."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stateset_agents.training.batching import micro_batches
from stateset_agents.training.logprobs import batch_logprobs
from stateset_agents.training.objective import weighted_loss
from stateset_agents.training.step import Learner, train_step
from tests.training.made import (
    gradient_of,
    make_advantages,
    make_learner_for,
    make_rows,
    to_batch,
    widen,
)

LORA = {"use_lora": True, "lora_r": 4}
FULL: dict[str, Any] = {}


def wide_learner(folder: Path, **settings: Any) -> Learner:
    return widen(make_learner_for(folder, **settings))


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Equal in each parameter to five digits; the model computes its norms in float32."""
    for name, value in first.items():
        assert value.norm() > 1e-6, name
        assert (value - second[name]).norm() / value.norm() < 3e-6, name


@pytest.mark.parametrize("settings", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("algorithm", ["grpo", "gspo"])
def test_the_micro_batch_budget_changes_nothing(
    tiny_model_dir: Path, settings: dict[str, Any], algorithm: str
) -> None:
    rows = make_rows()
    batch = to_batch(rows, make_advantages(rows))
    whole, single = (
        wide_learner(
            tiny_model_dir,
            **settings,
            algorithm=algorithm,
            micro_batch_tokens=budget,
            share_prefix=False,
        )
        for budget in (10_000, 1)
    )
    assert len(micro_batches(batch, token_budget=1, share_prefix=False)) == 8

    assert_same(gradient_of(whole, batch), gradient_of(single, batch))


@pytest.mark.parametrize("settings", [LORA, FULL], ids=["lora", "full"])
def test_the_shared_prefix_step_equals_the_plain_step(
    tiny_model_dir: Path, settings: dict[str, Any]
) -> None:
    rows = make_rows()
    batch = to_batch(rows, make_advantages(rows))
    assert batch.shared_prefix_lengths.tolist() == [23] * 8
    plain, shared = (
        wide_learner(tiny_model_dir, **settings, share_prefix=share) for share in (False, True)
    )

    assert_same(gradient_of(plain, batch), gradient_of(shared, batch))


def test_the_order_of_rows_and_groups_changes_nothing(tiny_model_dir: Path) -> None:
    rows, learner = make_rows(), wide_learner(tiny_model_dir, **LORA)
    advantages = make_advantages(rows)
    turned = list(reversed(rows))

    assert_same(
        gradient_of(learner, to_batch(rows, advantages)),
        gradient_of(learner, to_batch(turned, advantages)),
    )


def test_what_padding_holds_changes_nothing(tiny_model_dir: Path) -> None:
    rows, learner = make_rows(), wide_learner(tiny_model_dir, **LORA)
    batch = to_batch(rows, make_advantages(rows))
    padding = torch.arange(batch.token_ids.shape[1]) >= batch.row_lengths[:, None]
    other = replace(batch, token_ids=batch.token_ids.masked_fill(padding, 77))
    assert padding.any()

    assert_same(gradient_of(learner, batch), gradient_of(learner, other))


@pytest.mark.parametrize("algorithm", ["grpo", "gspo"])
def test_eight_micro_batches_of_one_group_equal_one_of_eight(
    tiny_model_dir: Path, algorithm: str
) -> None:
    rows = make_rows(groups=8, generations=2)
    advantages = make_advantages(rows)
    whole = wide_learner(
        tiny_model_dir, **LORA, algorithm=algorithm, share_prefix=False, micro_batch_tokens=10**6
    )
    one_group = wide_learner(tiny_model_dir, **LORA, algorithm=algorithm, micro_batch_tokens=120)

    batch = to_batch(rows, advantages)
    assert len(micro_batches(batch, token_budget=10**6, share_prefix=False)) == 1
    assert len(micro_batches(batch, token_budget=120, share_prefix=True)) >= 8
    assert_same(gradient_of(whole, batch), gradient_of(one_group, batch))


@pytest.mark.parametrize("algorithm", ["grpo", "gspo"])
def test_on_policy_the_gradient_is_that_of_reinforce(tiny_model_dir: Path, algorithm: str) -> None:
    rows = make_rows()
    batch = to_batch(rows, make_advantages(rows))
    learner = wide_learner(tiny_model_dir, algorithm=algorithm)

    found = gradient_of(learner, batch)

    # REINFORCE: minus the mean over conversations and their tokens of A grad log pi
    tokens = batch_logprobs(learner.policy, batch, share_prefix=False)
    (-(tokens.logprobs * batch.advantages * batch.loss_weights).sum()).backward()
    expected = {name: p.grad for name, p in learner.policy.trainable.items() if p.grad is not None}
    assert_same(expected, found)


@pytest.mark.parametrize(("cap", "factor"), [(None, 1.0), (3.0, 2.0), (1.5, 1.5)])
def test_tokens_that_the_engine_gave_half_the_probability_count_double_up_to_the_cap(
    tiny_model_dir: Path, cap: float | None, factor: float
) -> None:
    rows = make_rows(groups=1)
    batch = to_batch(rows, make_advantages(rows))
    learner = make_learner_for(tiny_model_dir, importance_sampling_cap=cap)
    policy = torch.where(batch.loss_mask, -1.0, 0.0)
    batch = replace(batch, sampling_logprobs=policy - math.log(2) * batch.loss_mask)

    loss, _ = weighted_loss(policy, batch, learner.objective)

    plain = -(batch.advantages * batch.loss_weights).sum()
    assert loss.item() == pytest.approx(factor * plain.item(), rel=1e-5)


def test_tokens_that_were_not_sampled_have_no_gradient(tiny_model_dir: Path) -> None:
    rows = make_rows(groups=1, generations=2)
    batch = to_batch(rows, make_advantages(rows))
    learner = wide_learner(tiny_model_dir)
    tokens = batch_logprobs(learner.policy, batch, share_prefix=False)
    seen = tokens.logprobs.detach().requires_grad_(True)
    loss, _ = weighted_loss(seen, batch, learner.objective)
    loss.backward()

    assert seen.grad is not None
    assert torch.equal(seen.grad != 0, batch.loss_mask)


def test_a_batch_without_advantage_moves_nothing(tiny_model_dir: Path) -> None:
    rows, learner = make_rows(), wide_learner(tiny_model_dir, **LORA)
    batch = to_batch(rows, torch.zeros(8))

    assert all(not bool(value.any()) for value in gradient_of(learner, batch).values())


def test_rows_without_advantage_may_be_left_out(tiny_model_dir: Path) -> None:
    rows, learner = make_rows(), wide_learner(tiny_model_dir, **LORA)
    advantages = make_advantages(rows)
    advantages[:5] = 0
    fewer = to_batch(rows, advantages, keep_all_rows=False)
    assert len(fewer.row_lengths) == 3

    assert_same(gradient_of(learner, to_batch(rows, advantages)), gradient_of(learner, fewer))


def test_log_probs_are_those_of_the_whole_logits(tiny_model_dir: Path) -> None:
    rows = make_rows(groups=1)
    batch = to_batch(rows, make_advantages(rows))
    learner = wide_learner(tiny_model_dir, **LORA)

    tokens = batch_logprobs(learner.policy, batch, share_prefix=True)

    with torch.no_grad():
        logits = learner.policy.model(input_ids=batch.token_ids).logits[:, :-1] / 0.9
    every = logits.log_softmax(-1)
    chosen = every.gather(2, batch.token_ids[:, 1:, None])[..., 0]
    entropy = -(every.exp() * every).sum(-1)
    sampled = batch.loss_mask[:, 1:]
    torch.testing.assert_close(tokens.logprobs[:, 1:][sampled], chosen[sampled])
    torch.testing.assert_close(tokens.entropy[:, 1:][sampled], entropy[sampled])


def test_the_head_of_a_full_model_gets_its_gradient(tiny_model_dir: Path) -> None:
    rows = make_rows(groups=1)
    batch = to_batch(rows, make_advantages(rows))
    learner = wide_learner(tiny_model_dir)
    found = gradient_of(learner, batch)

    logits = learner.policy.model(input_ids=batch.token_ids).logits[:, :-1] / 0.9
    chosen = logits.log_softmax(-1).gather(2, batch.token_ids[:, 1:, None])[..., 0]
    (-(chosen * (batch.advantages * batch.loss_weights)[:, 1:]).sum()).backward()
    expected = {name: p.grad for name, p in learner.policy.trainable.items() if p.grad is not None}
    assert_same(expected, found)


def test_a_second_step_on_one_batch_is_clipped_where_it_left_the_range(
    tiny_model_dir: Path,
) -> None:
    rows, learner = make_rows(), make_learner_for(tiny_model_dir)
    batch = to_batch(rows, make_advantages(rows))

    first = train_step(learner, batch, rate=5.0)
    second = train_step(learner, replace(batch, old_logprobs=first.logprobs), rate=0.0)

    assert first.metrics["clipped_fraction"] == 0
    assert first.metrics["ratio_max"] == 1
    assert second.metrics["ratio_max"] > 1.28
    assert second.metrics["clipped_fraction"] > 0
