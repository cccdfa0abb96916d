"""What may not change a training step, and what must be exactly zero."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stateset_agents.exceptions import NonFiniteLossError
from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.batching import StepRow, micro_batches
from stateset_agents.training.logprobs import batch_logprobs
from stateset_agents.training.objective import weighted_loss
from stateset_agents.training.step import Learner, train_step
from tests.tiny_model import make_tiny_model
from tests.training.made import (
    TOKEN_ALGORITHMS,
    gradient_of,
    make_advantages,
    make_learner_for,
    make_rows,
    off_policy,
    to_batch,
    widen,
)

LORA = {"use_lora": True, "lora_r": 4}
FULL: dict[str, Any] = {}

Gradient = dict[str, torch.Tensor]


def wide_learner(folder: Path, **settings: Any) -> Learner:
    return widen(make_learner_for(folder, **settings))


def assert_same(first: Gradient, second: Gradient) -> None:
    """Equal in each parameter to five digits; the model computes its norms in float32."""
    for name, value in first.items():
        assert value.norm() > 1e-6, name
        assert (value - second[name]).norm() / value.norm() < 3e-6, name


def gradient_with(learner: Learner, batch: TrainingBatch, **settings: Any) -> Gradient:
    """The step's gradient under settings that may not change it."""
    return gradient_of(replace(learner, config=learner.config.model_copy(update=settings)), batch)


def off_policy_batch(learner: Learner, rows: list[StepRow]) -> TrainingBatch:
    """With everything that a loss can depend on: ratios on both sides of the clips, a KL term."""
    return off_policy(
        learner,
        to_batch(rows, make_advantages(rows), loss_aggregation=learner.objective.loss_aggregation),
    )


@pytest.mark.parametrize("settings", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("algorithm", TOKEN_ALGORITHMS)
def test_neither_micro_batches_nor_shared_prefixes_change_anything(
    tiny_model_dir: Path, settings: dict[str, Any], algorithm: str
) -> None:
    learner = wide_learner(tiny_model_dir, algorithm=algorithm, kl_coefficient=0.04, **settings)
    batch = off_policy_batch(learner, make_rows())
    assert batch.shared_prefix_lengths.tolist() == [23] * 8
    assert len(micro_batches(batch, token_budget=1, share_prefix=False)) == 8

    plain = gradient_with(learner, batch, micro_batch_tokens=10**6, share_prefix=False)

    assert_same(plain, gradient_with(learner, batch, micro_batch_tokens=1, share_prefix=False))
    assert_same(plain, gradient_with(learner, batch, micro_batch_tokens=10**6, share_prefix=True))
    assert_same(plain, gradient_with(learner, batch, micro_batch_tokens=100, share_prefix=True))


@pytest.mark.parametrize("algorithm", TOKEN_ALGORITHMS)
def test_neither_the_order_of_rows_and_groups_nor_padding_changes_anything(
    tiny_model_dir: Path, algorithm: str
) -> None:
    learner = wide_learner(tiny_model_dir, algorithm=algorithm, kl_coefficient=0.04, **LORA)
    batch = off_policy_batch(learner, make_rows())
    first, second = torch.arange(4), torch.arange(4, 8)
    found = gradient_of(learner, batch)

    for order in (torch.cat([second, first]), torch.arange(8).flip(0)):
        assert_same(found, gradient_of(learner, batch.select(order)))
    padding = torch.arange(batch.token_ids.shape[1]) >= batch.row_lengths[:, None]
    other = replace(batch, token_ids=batch.token_ids.masked_fill(padding, 77))
    assert padding.any()
    assert_same(found, gradient_of(learner, other))
    assert_same(found, gradient_of(learner, wider(batch, by=9)))


def wider(batch: TrainingBatch, by: int) -> TrainingBatch:
    """The same batch with so many more columns of padding."""
    return replace(
        batch,
        **{
            field.name: torch.nn.functional.pad(value, (0, by))
            for field in fields(batch)
            if isinstance(value := getattr(batch, field.name), torch.Tensor) and value.dim() == 2
        },
    )


@pytest.mark.parametrize("algorithm", TOKEN_ALGORITHMS)
def test_eight_micro_batches_of_one_group_equal_one_of_eight(
    tiny_model_dir: Path, algorithm: str
) -> None:
    learner = wide_learner(tiny_model_dir, algorithm=algorithm, **LORA)
    batch = off_policy_batch(learner, make_rows(groups=8, generations=2))
    whole = {"share_prefix": False, "micro_batch_tokens": 10**6}
    assert len(micro_batches(batch, token_budget=10**6, share_prefix=False)) == 1
    assert len(micro_batches(batch, token_budget=120, share_prefix=True)) >= 8

    found = gradient_with(learner, batch, micro_batch_tokens=120)

    assert_same(gradient_with(learner, batch, **whole), found)


@pytest.mark.parametrize("algorithm", TOKEN_ALGORITHMS)
def test_on_policy_the_gradient_is_that_of_reinforce(tiny_model_dir: Path, algorithm: str) -> None:
    learner = wide_learner(tiny_model_dir, algorithm=algorithm)
    rows = make_rows()
    batch = to_batch(
        rows, make_advantages(rows), loss_aggregation=learner.objective.loss_aggregation
    )

    found = gradient_of(learner, batch)

    # REINFORCE, aggregated as the algorithm does: minus the sum of w A grad log pi. For one ratio
    # per row this needs what holds here, one weight and one advantage for all of a row's tokens.
    tokens = batch_logprobs(learner.policy, batch, share_prefix=False)
    (-(tokens.logprobs * batch.advantages * batch.loss_weights).sum()).backward()
    expected = {name: p.grad for name, p in learner.policy.trainable.items() if p.grad is not None}
    assert_same(expected, found)


@pytest.mark.parametrize("algorithm", [name for name in TOKEN_ALGORITHMS if name != "gspo"])
def test_with_turns_credited_each_token_is_reinforced_by_its_own_turn(
    tiny_model_dir: Path, algorithm: str
) -> None:
    learner = wide_learner(tiny_model_dir, algorithm=algorithm, credit="turn")
    rows = make_rows()
    by_turn = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = to_batch(rows, by_turn, loss_aggregation=learner.objective.loss_aggregation)

    found = gradient_of(learner, batch)

    own = torch.zeros(batch.token_ids.shape, dtype=torch.float64)
    for number, row in enumerate(rows):
        for place, turn in enumerate(row.turn_index):
            own[number, place] = by_turn[number, turn] if turn >= 0 else 0.0
    tokens = batch_logprobs(learner.policy, batch, share_prefix=False)
    (-(tokens.logprobs * own * batch.loss_weights).sum()).backward()
    expected = {name: p.grad for name, p in learner.policy.trainable.items() if p.grad is not None}
    assert_same(expected, found)


def test_a_reference_that_excludes_what_was_sampled_stops_the_step_before_the_weights_change(
    tiny_model_dir: Path,
) -> None:
    learner = make_learner_for(tiny_model_dir, kl_coefficient=0.1)
    batch = off_policy_batch(learner, make_rows(groups=1))
    assert batch.reference_logprobs is not None
    excluded = batch.reference_logprobs.masked_fill(batch.loss_mask, -math.inf)
    before = {name: value.detach().clone() for name, value in learner.policy.trainable.items()}

    with pytest.raises(NonFiniteLossError, match="the loss is inf"):
        train_step(learner, replace(batch, reference_logprobs=excluded), rate=1.0)

    for name, value in learner.policy.trainable.items():
        assert torch.equal(before[name], value), name


@pytest.mark.parametrize("use_lora", [True, False], ids=["lora", "full"])
def test_dropout_that_the_models_own_config_asks_for_is_off_as_it_was_when_sampling(
    tmp_path: Path, use_lora: bool
) -> None:
    folder = make_tiny_model(tmp_path)
    rows = make_rows(groups=1)
    batch = to_batch(rows, make_advantages(rows))
    without = gradient_of(wide_learner(folder, use_lora=use_lora), batch)
    described = json.loads((folder / "config.json").read_text())
    assert described["attention_dropout"] == 0
    (folder / "config.json").write_text(json.dumps({**described, "attention_dropout": 0.5}))

    learner = wide_learner(folder, use_lora=use_lora)

    assert learner.policy.model.config.attention_dropout == 0.5
    assert_same(without, gradient_of(learner, batch))


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


@pytest.mark.parametrize("algorithm", TOKEN_ALGORITHMS)
def test_prompt_user_and_padding_tokens_have_no_gradient_whatever_they_hold(
    tiny_model_dir: Path, algorithm: str
) -> None:
    learner = wide_learner(
        tiny_model_dir,
        algorithm=algorithm,
        kl_coefficient=0.04,
        kl_bias_correction=True,
        importance_sampling_cap=2.0,
    )
    batch = off_policy_batch(learner, make_rows(groups=1, generations=2))
    others = ~batch.loss_mask
    assert batch.old_logprobs is not None
    assert batch.reference_logprobs is not None
    seen = (batch.old_logprobs + 0.01).masked_fill(others, -math.inf).requires_grad_(True)
    spoilt = replace(
        batch,
        old_logprobs=batch.old_logprobs.masked_fill(others, math.nan),
        reference_logprobs=batch.reference_logprobs.masked_fill(others, math.inf),
        sampling_logprobs=batch.sampling_logprobs.masked_fill(others, math.nan),
        advantages=batch.advantages.masked_fill(others, math.nan),
    )

    loss, _ = weighted_loss(seen, spoilt, learner.objective)
    loss.backward()

    assert loss.isfinite()
    assert seen.grad is not None
    assert bool(seen.grad.isfinite().all())
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
