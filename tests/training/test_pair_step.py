"""Training on pairs: which pairs, what a step does, what is cached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.advantages import best_and_worst
from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.logprobs import batch_logprobs
from stateset_agents.training.pair_losses import PairLogprobs, pair_loss
from stateset_agents.training.pair_step import pair_logprobs, pair_step
from stateset_agents.training.reference_cache import ReferenceCache
from stateset_agents.training.step import reference_logprobs
from stateset_agents.training.update import update
from tests.training.made import make_learner_for, make_rows, to_batch
from tests.training.runs import MadeUp, Remembered, make_trainer, train


def test_a_groups_pair_is_its_best_and_its_worst_conversation() -> None:
    rewards = torch.tensor([0.2, 0.9, 0.1, 0.9, 0.5, 0.5], dtype=torch.float64)
    group_index = torch.tensor([0, 0, 0, 0, 1, 1])

    # of two equally good ones the first; a group of equals has no pair
    assert best_and_worst(rewards, group_index).tolist() == [0, 1, -1, 0, 0, 0]


def pairs_batch() -> TrainingBatch:
    rows = make_rows(groups=2, generations=2)
    sides = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    return to_batch(rows, sides, loss_aggregation="token_sum", keep_all_rows=False)


LOSSES: list[dict[str, Any]] = [
    {"pair_loss": "sigmoid"},
    {"pair_loss": "hinge"},
    {"pair_loss": "ipo"},
    {"pair_loss": "robust", "pair_label_smoothing": 0.2},
    {"pair_loss": "sigmoid_norm", "pair_beta": 0.5},
]


@pytest.mark.parametrize("settings", LOSSES, ids=lambda settings: settings["pair_loss"])
def test_a_steps_gradient_is_that_of_the_mean_pair_loss_over_whole_conversations(
    tiny_model_dir: Path, settings: dict[str, Any]
) -> None:
    learner = make_learner_for(tiny_model_dir, algorithm="dpo", use_lora=True, **settings)
    batch = pairs_batch()
    batch = replace(batch, reference_logprobs=reference_logprobs(learner, batch))
    # all rows side by side, nothing shared, sums written out
    tokens = batch_logprobs(learner.policy, batch, share_prefix=False)
    sums = tokens.logprobs.sum(1)
    assert batch.reference_logprobs is not None
    references, counts = batch.reference_logprobs.sum(1), batch.loss_mask.sum(1)
    chosen, rejected = torch.tensor([0, 3]), torch.tensor([1, 2])
    loss = pair_loss(
        PairLogprobs(
            sums[chosen], sums[rejected], references[chosen], references[rejected],
            counts[chosen], counts[rejected],
        ),
        variant=settings["pair_loss"],
        beta=settings.get("pair_beta", 0.1),
        label_smoothing=settings.get("pair_label_smoothing", 0.0),
    ).mean()  # fmt: skip
    parameters = list(learner.policy.trainable.values())
    expected = torch.autograd.grad(loss, parameters)
    before = [value.detach().clone() for value in parameters]

    metrics = pair_step(learner, batch, rate=1.0)

    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    for was, now, gradient in zip(before, parameters, expected, strict=True):
        torch.testing.assert_close(was - now.detach(), gradient, rtol=1e-3, atol=1e-5)


def test_in_float16_a_gradient_that_it_cannot_hold_is_scaled_and_equals_float32s(
    tiny_model_dir: Path,
) -> None:
    norms, scales = [], []
    for fp16 in (False, True):
        learner = make_learner_for(
            tiny_model_dir, algorithm="dpo", use_lora=True, pair_beta=1e-6, fp16=fp16
        )
        batch = pairs_batch()
        batch = replace(batch, reference_logprobs=reference_logprobs(learner, batch))
        metrics = pair_step(learner, batch, rate=0.0)
        norms.append(metrics["grad_norm"])
        scales.append(metrics.get("loss_scale"))

    assert norms[0] > 0
    assert norms[1] == pytest.approx(norms[0], rel=0.02)
    assert scales == [None, 2.0**16]


def test_the_references_log_probs_are_kept_while_there_is_room(tiny_model_dir: Path) -> None:
    learner = make_learner_for(tiny_model_dir, algorithm="dpo", use_lora=True)
    batch = pairs_batch()
    first, second = (batch.select((batch.group_index == n).nonzero().squeeze(1)) for n in (0, 1))
    cache = ReferenceCache(limit_bytes=4 * int(first.loss_mask.sum()))

    for pair in (first, second):
        assert cache.get(pair) is None
        cache.put(pair, reference_logprobs(learner, pair))

    kept = cache.get(first)
    assert kept is not None
    assert torch.equal(kept, reference_logprobs(learner, first))
    assert cache.get(second) is None
    # the same tokens, of which others were sampled
    assert cache.get(replace(first, loss_mask=~first.loss_mask)) is None


def test_a_conversation_in_two_rows_is_summed_over_both(tiny_model_dir: Path) -> None:
    learner = make_learner_for(tiny_model_dir, algorithm="dpo")
    rows = make_rows(groups=1, generations=3)
    rows[1] = replace(rows[1], trajectory=0)  # the first conversation's second row
    rows[2] = replace(rows[2], trajectory=1)
    batch = to_batch(rows, torch.tensor([1.0, -1.0], dtype=torch.float64))
    batch = replace(batch, reference_logprobs=torch.zeros_like(batch.sampling_logprobs))

    pair = pair_logprobs(batch.sampling_logprobs, batch)

    assert pair.chosen.item() == pytest.approx(float(batch.sampling_logprobs[:2].sum()))
    assert pair.rejected.item() == pytest.approx(float(batch.sampling_logprobs[2].sum()))
    assert pair.chosen_tokens.item() == int(batch.loss_mask[:2].sum())
    assert learner.objective.loss is None


def test_several_steps_on_a_batch_move_every_pair_the_right_way(tiny_model_dir: Path) -> None:
    learner = make_learner_for(tiny_model_dir, algorithm="dpo", num_iterations=4, kl_sample_rows=0)
    batch = pairs_batch()

    first = update(learner, batch, 1e-2)
    reference = reference_logprobs(learner, batch)
    again = pair_step(learner, replace(batch, reference_logprobs=reference), rate=0.0)

    assert first["pairs"] == 2
    assert first["loss"] == pytest.approx(0.693147, rel=1e-4)  # nothing had moved yet
    assert again["pair_accuracy"] == 1
    assert again["pair_margin"] > 0
    assert again["chosen_reward"] > again["rejected_reward"]


def test_a_run_trains_on_the_best_and_the_worst_of_each_group(tiny_model_dir: Path) -> None:
    logger = Remembered()

    train(make_trainer(tiny_model_dir, logger=logger, algorithm="dpo", num_episodes=2))

    for _, metrics in logger.steps:
        assert metrics["policy/pairs"] == 1
        assert metrics["rows/trained"] == 2


def test_groups_without_spread_give_no_pair_and_leave_the_weights(tiny_model_dir: Path) -> None:
    trainer = make_trainer(tiny_model_dir, algorithm="dpo", reward=MadeUp(0.5), num_episodes=1)
    before = {name: value.detach().clone() for name, value in trainer.policy.trainable.items()}

    for name, value in train(trainer).items():
        assert torch.equal(before[name], value), name


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"algorithm": "dpo", "num_generations": 1}, "leaves no pair"),
        ({"algorithm": "dpo", "credit": "turn"}, "credit='turn' has no effect"),
        ({"algorithm": "dpo", "kl_coefficient": 0.1}, "kl_coefficient=0.1 has no effect"),
        ({"algorithm": "dpo", "pair_label_smoothing": 0.1}, 'pair_loss="robust"'),
        ({"algorithm": "grpo", "pair_beta": 0.3}, "which is not trained on pairs"),
    ],
)
def test_settings_that_pairs_do_not_read_are_errors(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        TrainingConfig(**settings)
