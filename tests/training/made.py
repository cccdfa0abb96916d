"""What the training tests work on: made batches, and a tiny policy in float32 or wider."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stateset_agents.inference.loading import load_model
from stateset_agents.training.algorithms import ALGORITHMS
from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.batching import StepRow, StepRows, make_batch
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.logprobs import batch_logprobs
from stateset_agents.training.policy import Policy
from stateset_agents.training.step import Learner, make_learner

VOCABULARY = 480
# Those whose loss is a sum over tokens; the others' is one of pairs.
TOKEN_ALGORITHMS = [name for name, row in ALGORITHMS.items() if not row.on_pairs]


def make_config(**settings: Any) -> TrainingConfig:
    return TrainingConfig(**{"bf16": False, "importance_sampling_cap": None, **settings})


def make_policy(folder: Path, config: TrainingConfig) -> Policy:
    return Policy(load_model(folder, dtype="float32"), config)


def perturb(policy: Policy, scale: float = 0.05, seed: int = 1) -> None:
    """Move the trainable parameters, so that an adapter is not the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable.values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    policy.refresh()


def make_learner_for(folder: Path, **settings: Any) -> Learner:
    """Plain gradient descent and hardly any clipping: what the weights do is the gradient."""
    config = make_config(**{"max_grad_norm": 1e9, **settings})
    policy = make_policy(folder, config)
    if config.use_lora:
        perturb(policy)
    learner = make_learner(policy, config)
    return replace(learner, optimizer=torch.optim.SGD(policy.trainable.values(), lr=1.0))


def make_rows(
    *, groups: int = 2, generations: int = 4, prefix: int = 24, seed: int = 0
) -> list[StepRow]:
    """Conversations of three answers of unequal length, the user's words between them."""
    rng = random.Random(seed)

    def draw(count: int) -> list[int]:
        return [rng.randrange(VOCABULARY) for _ in range(count)]

    rows = []
    for group in range(groups):
        opening = draw(prefix)
        for sample in range(generations):
            ids, mask, turns = list(opening), [False] * prefix, [-1] * prefix
            for turn in range(3):
                answer = rng.randrange(1, 9)
                ids += draw(answer)
                mask += [True] * answer
                turns += [turn] * answer
                if turn < 2:
                    ids += draw(5)
                    mask += [False] * 5
                    turns += [-1] * 5
            rows.append(
                StepRow(
                    tuple(ids),
                    tuple(mask),
                    tuple(-rng.random() if sampled else 0.0 for sampled in mask),
                    trajectory=group * generations + sample,
                    group=group,
                    turn_index=tuple(turns),
                )
            )
    return rows


def make_advantages(rows: list[StepRow], seed: int = 0) -> torch.Tensor:
    count = 1 + max(row.trajectory for row in rows)
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def to_batch(rows: list[StepRow], advantages: torch.Tensor, **settings: Any) -> TrainingBatch:
    return make_batch(
        StepRows(rows=rows),
        advantages,
        **{
            "loss_aggregation": "sequence_mean",
            "max_completion_length": 64,
            "pad_token_id": 2,
            "temperature": 0.9,
            "keep_all_rows": True,
            **settings,
        },
    )


def off_policy(learner: Learner, batch: TrainingBatch) -> TrainingBatch:
    """The batch with old and reference log-probs at some distance of the model's own; the same
    noise at every call, and sampled with the old ones.
    """
    own = batch_logprobs(learner.policy, batch, share_prefix=False).logprobs.detach().float()
    noise = torch.Generator().manual_seed(0)
    old = own + 0.2 * torch.randn(own.shape, generator=noise)
    reference = own + 0.5 * torch.randn(own.shape, generator=noise)
    return replace(
        batch,
        sampling_logprobs=old * batch.loss_mask,
        old_logprobs=old * batch.loss_mask,
        reference_logprobs=reference * batch.loss_mask,
    )


def widen(learner: Learner) -> Learner:
    """The same learner in float64: equal results are then equal to many digits."""
    learner.policy.model.double()
    learner.policy.refresh()
    return learner


def gradient_of(learner: Learner, batch: TrainingBatch) -> dict[str, torch.Tensor]:
    """What one step takes off the parameters at a learning rate of 1: the step's gradient."""
    from stateset_agents.training.step import train_step

    before = {name: value.detach().clone() for name, value in learner.policy.trainable.items()}
    train_step(learner, batch, rate=1.0)
    after = learner.policy.trainable
    gradient = {name: before[name] - after[name].detach() for name in before}
    learner.policy.load_trainable(before)
    return gradient
