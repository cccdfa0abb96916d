"""The loop that fits a reward model, whatever its answers are compared by.

Owns the passes: the frozen layers' output is computed once for every pack and kept, training runs
the top layers alone, and scores are those of the weights that will be saved. It does not know pairs
or ratings: a loss of the scores of a pack's sequences is given to it.

Notation: S sequences, T tokens of a pack, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from stateset_agents.exceptions import NonFiniteLossError
from stateset_agents.rewards.prefix_tree import Pack, pack_sequences
from stateset_agents.training.reward_model_body import SplitBody
from stateset_agents.training.reward_model_config import RewardModelConfig

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Told the stage, how much of it is done, of how much, and the numbers so far."""

TokenGroups = Sequence[Sequence[Sequence[int]]]
"""Token sequences, grouped by what has to be in one pack (the two answers of a pair)."""


@dataclass(frozen=True, slots=True)
class PackLoss:
    """What a pack's scores come to.

    Attributes:
        mean: the loss, a scalar with gradient: the mean over the pack's units.
        units: how many pairs, or answers.
        right: how many of them the scores get right.
    """

    mean: torch.Tensor
    units: int
    right: int


LossOfPack = Callable[[torch.Tensor, Sequence[int]], PackLoss]
"""From scores `(S,)` and the numbers of the sequences that they belong to."""


@dataclass(frozen=True, slots=True, eq=False)
class FrozenPack:
    """A pack with what the frozen layers made of it: `hidden` is `(1, T, H)`, or None where nothing
    is frozen apart. `units` is how many pairs, or answers, it holds.
    """

    pack: Pack
    units: int
    hidden: torch.Tensor | None


def frozen_pass(
    stages: Mapping[str, TokenGroups],
    split: SplitBody,
    config: RewardModelConfig,
    progress: Progress,
    *,
    unit: int,
) -> dict[str, list[FrozenPack]]:
    """Packs of every stage, with the frozen layers' output; `unit` sequences are one pair (2), or
    one answer (1).
    """
    packs = {name: pack_sequences(some, config.pack_tokens) for name, some in stages.items()}
    total = sum(len(pack.token_ids) for some in packs.values() for pack in some)
    done = 0
    finished: dict[str, list[FrozenPack]] = {name: [] for name in packs}
    for name, some in packs.items():
        for pack in some:
            units = len(pack.sequence_indices) // unit
            finished[name].append(FrozenPack(pack, units, split.frozen(pack)))
            done += len(pack.token_ids)
            progress("frozen layers", done, total, {})
    return finished


def fit(
    packs: Sequence[FrozenPack],
    loss_of: LossOfPack,
    split: SplitBody,
    head: nn.Linear,
    config: RewardModelConfig,
    progress: Progress,
) -> list[dict[str, float]]:
    """Train layers and head; one dict for each optimizer step: step, epoch, loss, accuracy.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite; the weights were not touched by it.
    """
    layers = split.trained_parameters()
    parameters = [*layers, *head.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": layers, "lr": config.learning_rate},
            {"params": list(head.parameters()), "lr": config.head_learning_rate},
        ],
        weight_decay=config.weight_decay,
    )
    batches = list(_batches(packs, config))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _rate_factor(step, len(batches))
    )
    curve: list[dict[str, float]] = []
    for step, (epoch, batch) in enumerate(batches, start=1):
        count = sum(one.units for one in batch)
        loss_sum, right = 0.0, 0
        for one in batch:
            scores = _pack_scores(one, split, head, split.autocast())
            found = loss_of(scores, one.pack.sequence_indices)
            loss = found.mean * (found.units / count)
            loss.backward()
            loss_sum += loss.item()
            right += found.right
        norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        if not math.isfinite(loss_sum) or not math.isfinite(norm.item()):
            raise NonFiniteLossError(
                f"the reward model's loss is {loss_sum} and its gradient's norm {norm.item()} in "
                f"step {step}; lower reward_model.learning_rate or use dtype float32"
            )
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        numbers = {"loss": loss_sum, "accuracy": right / count}
        curve.append({"step": float(step), "epoch": float(epoch), **numbers})
        progress("training", step, len(batches), numbers)
    return curve


@torch.inference_mode()
def scores_of(
    packs: Sequence[FrozenPack], split: SplitBody, head: nn.Linear, count: int
) -> torch.Tensor:
    """Raw scores `(count,)` float64 of all sequences of a stage, in the order they were given."""
    scores = torch.zeros(count, dtype=torch.float64)
    for one in packs:
        values = _pack_scores(one, split, head, split.autocast(enabled=False))
        scores[list(one.pack.sequence_indices)] = values.cpu().double()
    return scores


def new_head(hidden_size: int, seed: int) -> nn.Linear:
    """A head `(1, H)` with small random weights that `seed` decides."""
    head = nn.Linear(hidden_size, 1, bias=False)
    generator = torch.Generator().manual_seed(seed)
    head.weight.data = torch.randn(1, hidden_size, generator=generator) / hidden_size
    return head


def silent(stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
    """The `Progress` of somebody who asked for none."""


def _pack_scores(
    one: FrozenPack, split: SplitBody, head: nn.Linear, precision: AbstractContextManager[None]
) -> torch.Tensor:
    """Scores `(S,)` of a pack's sequences, in the pack's order."""
    with precision:
        hidden = split.trained(one.pack, one.hidden)
    scores: torch.Tensor = head(hidden[one.pack.last_nodes].float()).squeeze(-1)
    return scores


def _batches(
    packs: Sequence[FrozenPack], config: RewardModelConfig
) -> Iterator[tuple[int, list[FrozenPack]]]:
    """Packs in a new order each epoch, taken together until they hold `batch_pairs` units."""
    generator = torch.Generator().manual_seed(config.seed + 2)
    for epoch in range(config.num_epochs):
        batch: list[FrozenPack] = []
        for index in torch.randperm(len(packs), generator=generator).tolist():
            batch.append(packs[index])
            if sum(one.units for one in batch) >= config.batch_pairs:
                yield epoch, batch
                batch = []
        if batch:
            yield epoch, batch


def _rate_factor(step: int, total: int) -> float:
    warmup = max(1, total // 10)
    if step < warmup:
        return (step + 1) / warmup
    return (total - step) / max(1, total - warmup)
