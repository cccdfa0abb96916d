"""Training a reward model on preference pairs, after Bradley and Terry (1952).

Owns the loss, the loop and what is measured on held-out pairs; the files of a report are the
step's. The lower layers of the base model are frozen, so their output is computed once for every
pair and kept; training runs the top layers alone. Both answers of a pair, and pairs that begin
alike, share the work on their common beginning (`rewards.prefix_tree`).

Notation: P pairs, S sequences, T tokens of a pack, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from stateset_agents.data.schemas import PreferencePair
from stateset_agents.exceptions import DataError, NonFiniteLossError
from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.inference.loading import load_model, load_tokenizer
from stateset_agents.rewards.prefix_tree import Pack, pack_sequences
from stateset_agents.rewards.reward_network import RewardNetwork, conversation_tokens
from stateset_agents.training.reward_model_body import SplitBody, keep_layers
from stateset_agents.training.reward_model_calibration import (
    CalibrationBin,
    calibration_curve,
    expected_calibration_error,
    fit_calibration,
)
from stateset_agents.training.reward_model_config import RewardModelConfig

MIN_PAIRS = 8

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Told the stage, how much of it is done, of how much, and the numbers so far."""


def bradley_terry_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    margins: torch.Tensor | None = None,
    center_coefficient: float = 0.0,
) -> torch.Tensor:
    """`mean(-log sigmoid(c - r - m)) + center_coefficient * mean((c + r)^2)`, a scalar.

    Args:
        chosen: `(P,)` scores c of the preferred answers.
        rejected: `(P,)` scores r of the others.
        margins: `(P,)` how much better a chosen answer is (Touvron et al. 2023, eq. 2), or None.
        center_coefficient: weight of the term that takes away the scores' free constant (Eisenstein
            et al. 2023, eq. 2).
    """
    difference = chosen - rejected if margins is None else chosen - rejected - margins
    loss = -F.logsigmoid(difference).mean()
    if center_coefficient:
        loss = loss + center_coefficient * (chosen + rejected).square().mean()
    return loss


@dataclass(frozen=True, slots=True)
class TrainedRewardModel:
    """A reward model with what was measured of it.

    Attributes:
        network: ready to score, calibrated.
        tokenizer: to save beside it.
        metrics: on held-out pairs unless the name says otherwise.
        curve: one dict for each optimizer step: step, epoch, loss, accuracy of its pairs.
        calibration: bins of the held-out pairs, by rising confidence.
    """

    network: RewardNetwork
    tokenizer: ChatTokenizer
    metrics: dict[str, float]
    curve: list[dict[str, float]]
    calibration: list[CalibrationBin]

    def save(self, folder: Path) -> None:
        """Write what `rewards.learned.LearnedReward.load` reads."""
        self.network.save(folder, self.tokenizer)


@dataclass(frozen=True, slots=True, eq=False)
class _PairPack:
    """A pack of whole pairs with what the frozen layers made of it.

    `pair_indices` are P numbers; sequences 2p and 2p + 1 of the pack are pair p's answers. `hidden`
    is `(1, T, H)` or None where nothing is frozen apart.
    """

    pack: Pack
    pair_indices: tuple[int, ...]
    hidden: torch.Tensor | None


def train_reward_model(
    pairs: Sequence[PreferencePair],
    heldout_pairs: Sequence[PreferencePair],
    base_folder: Path | str,
    config: RewardModelConfig,
    on_progress: Progress | None = None,
) -> TrainedRewardModel:
    """Train on `pairs`, calibrate on some of them that are kept back, measure on `heldout_pairs`.

    The same arguments give the same weights on the same machine. A pair's `metadata["margin"]`, if
    there is one, is its margin in the loss.

    Raises:
        DataError: too few pairs, or a pair that the length limit makes two equal sequences.
        ModelSourceError: the base model's folder cannot be read.
        NonFiniteLossError: the loss is NaN or infinite; the weights were not touched by it.
    """
    _check_counts(pairs, heldout_pairs)
    progress = on_progress or _silent
    tokenizer = load_tokenizer(base_folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    body: Any = load_model(base_folder, dtype=config.dtype, device=device).base_model
    keep_layers(body, config.base_layers)
    split = SplitBody(body, config.trained_layers)
    head = _new_head(body.config.hidden_size, config.seed).to(device)

    training, calibrating = _keep_back(pairs, config)
    stages = {"train": training, "calibrate": calibrating, "heldout": list(heldout_pairs)}
    packs = _frozen_pass(stages, tokenizer, split, config, progress)
    curve = _fit(packs["train"], training, split, head, config, progress)
    split.merge()

    scores = {name: _scores(packs[name], split, head, len(stages[name])) for name in stages}
    calibration = fit_calibration(*scores["calibrate"])
    network = RewardNetwork(body, head, config.max_tokens, calibration).eval()
    probabilities = torch.sigmoid(_difference(scores["heldout"]) / calibration.temperature)
    bins = calibration_curve(probabilities)
    metrics = _metrics(scores, stages)
    metrics |= {
        "calibration_error": expected_calibration_error(bins),
        "calibration_error_before": expected_calibration_error(
            calibration_curve(torch.sigmoid(_difference(scores["heldout"])))
        ),
        "temperature": calibration.temperature,
        "centre": calibration.centre,
    }
    return TrainedRewardModel(network, tokenizer, metrics, curve, bins)


def _check_counts(pairs: Sequence[PreferencePair], heldout: Sequence[PreferencePair]) -> None:
    problems = [
        f"{len(given)} {name} preference pairs were given; a reward model needs at least "
        f"{MIN_PAIRS}, add pairs to data/preferences"
        for name, given in (("training", pairs), ("held-out", heldout))
        if len(given) < MIN_PAIRS
    ]
    if problems:
        raise DataError(problems)


def _silent(stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
    pass


def _new_head(hidden_size: int, seed: int) -> nn.Linear:
    head = nn.Linear(hidden_size, 1, bias=False)
    generator = torch.Generator().manual_seed(seed)
    head.weight.data = torch.randn(1, hidden_size, generator=generator) / hidden_size
    return head


def _keep_back(
    pairs: Sequence[PreferencePair], config: RewardModelConfig
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    generator = torch.Generator().manual_seed(config.seed + 1)
    order = torch.randperm(len(pairs), generator=generator).tolist()
    kept = max(2, round(config.calibration_share * len(pairs)))
    return [pairs[i] for i in sorted(order[kept:])], [pairs[i] for i in sorted(order[:kept])]


def _frozen_pass(
    stages: dict[str, list[PreferencePair]],
    tokenizer: ChatTokenizer,
    split: SplitBody,
    config: RewardModelConfig,
    progress: Progress,
) -> dict[str, list[_PairPack]]:
    """Tokens and packs of every pair, with the frozen layers' output for each pack."""
    packs = {
        name: pack_sequences(_tokens(pairs, tokenizer, config.max_tokens), config.pack_tokens)
        for name, pairs in stages.items()
    }
    total = sum(len(pack.token_ids) for some in packs.values() for pack in some)
    done = 0
    finished: dict[str, list[_PairPack]] = {name: [] for name in packs}
    for name, some in packs.items():
        for pack in some:
            pair_indices = tuple(index // 2 for index in pack.sequence_indices[::2])
            finished[name].append(_PairPack(pack, pair_indices, split.frozen(pack)))
            done += len(pack.token_ids)
            progress("frozen layers", done, total, {})
    return finished


def _tokens(
    pairs: Sequence[PreferencePair], tokenizer: ChatTokenizer, max_tokens: int
) -> list[list[list[int]]]:
    groups = []
    for pair in pairs:
        group = [
            conversation_tokens(
                tokenizer, [m.model_dump() for m in (*pair.prompt, *answer)], max_tokens
            )
            for answer in (pair.chosen, pair.rejected)
        ]
        if group[0] == group[1]:
            raise DataError(
                f"the two answers of pair {pair.id!r} are equal after cutting to {max_tokens} "
                "tokens; raise reward_model.max_tokens or shorten the pair"
            )
        groups.append(group)
    return groups


def _fit(
    packs: Sequence[_PairPack],
    pairs: Sequence[PreferencePair],
    split: SplitBody,
    head: nn.Linear,
    config: RewardModelConfig,
    progress: Progress,
) -> list[dict[str, float]]:
    margins = torch.tensor(
        [float(pair.metadata.get("margin", 0.0)) for pair in pairs], device=head.weight.device
    )
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
        count = sum(len(one.pair_indices) for one in batch)
        loss_sum, correct = 0.0, 0
        for one in batch:
            chosen, rejected = _pair_scores(one, split, head, split.autocast())
            loss = bradley_terry_loss(
                chosen, rejected, margins[list(one.pair_indices)], config.center_coefficient
            ) * (len(chosen) / count)
            loss.backward()
            loss_sum += loss.item()
            correct += int((chosen > rejected).sum())
        norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        if not math.isfinite(loss_sum) or not math.isfinite(norm.item()):
            raise NonFiniteLossError(
                f"the reward model's loss is {loss_sum} and its gradient's norm {norm.item()} in "
                f"step {step}; lower reward_model.learning_rate or use dtype float32"
            )
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        numbers = {"loss": loss_sum, "accuracy": correct / count}
        curve.append({"step": float(step), "epoch": float(epoch), **numbers})
        progress("training", step, len(batches), numbers)
    return curve


def _batches(
    packs: Sequence[_PairPack], config: RewardModelConfig
) -> Iterator[tuple[int, list[_PairPack]]]:
    """Packs in a new order each epoch, taken together until they hold `batch_pairs` pairs."""
    generator = torch.Generator().manual_seed(config.seed + 2)
    for epoch in range(config.num_epochs):
        batch: list[_PairPack] = []
        for index in torch.randperm(len(packs), generator=generator).tolist():
            batch.append(packs[index])
            if sum(len(one.pair_indices) for one in batch) >= config.batch_pairs:
                yield epoch, batch
                batch = []
        if batch:
            yield epoch, batch


def _rate_factor(step: int, total: int) -> float:
    warmup = max(1, total // 10)
    if step < warmup:
        return (step + 1) / warmup
    return (total - step) / max(1, total - warmup)


def _pair_scores(
    one: _PairPack, split: SplitBody, head: nn.Linear, precision: AbstractContextManager[None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores `(P,)` of a pack's chosen and rejected answers."""
    with precision:
        hidden = split.trained(one.pack, one.hidden)
    values = head(hidden[one.pack.last_nodes].float()).squeeze(-1)
    return values[0::2], values[1::2]


@torch.inference_mode()
def _scores(
    packs: Sequence[_PairPack], split: SplitBody, head: nn.Linear, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw scores `(P,)` float64 of all pairs, by the weights that will be saved."""
    chosen, rejected = torch.zeros(2, count, dtype=torch.float64)
    for one in packs:
        indices = list(one.pair_indices)
        first, second = _pair_scores(one, split, head, split.autocast(enabled=False))
        chosen[indices], rejected[indices] = first.cpu().double(), second.cpu().double()
    return chosen, rejected


def _difference(scores: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return scores[0] - scores[1]


def _metrics(
    scores: dict[str, tuple[torch.Tensor, torch.Tensor]],
    stages: dict[str, list[PreferencePair]],
) -> dict[str, float]:
    heldout = _difference(scores["heldout"])
    longer = {name: _chosen_is_longer(pairs) for name, pairs in stages.items()}
    # the better of "longer wins" and "shorter wins", chosen on the training pairs
    direction = 1 if longer["train"].mean() >= 0 else -1
    right = (heldout > 0).double()
    metrics = {
        "heldout_accuracy": right.mean().item(),
        "heldout_loss": -F.logsigmoid(heldout).mean().item(),
        "heldout_margin": heldout.mean().item(),
        "heldout_pairs": float(len(heldout)),
        "length_baseline_accuracy": ((direction * longer["heldout"] + 1) / 2).mean().item(),
        "train_accuracy": (_difference(scores["train"]) > 0).double().mean().item(),
        "train_pairs": float(len(stages["train"])),
        "calibration_pairs": float(len(stages["calibrate"])),
        "calibration_accuracy": (_difference(scores["calibrate"]) > 0).double().mean().item(),
    }
    for name, sign in (("longer", 1), ("shorter", -1)):
        chosen_so = longer["heldout"] == sign
        if chosen_so.any():
            metrics[f"heldout_accuracy_chosen_{name}"] = right[chosen_so].mean().item()
    return metrics


def _chosen_is_longer(pairs: Sequence[PreferencePair]) -> torch.Tensor:
    """`(P,)`: 1 where the chosen answer has more characters, -1 where fewer, 0 where equal."""
    lengths = [
        sum(len(m.content) for m in pair.chosen) - sum(len(m.content) for m in pair.rejected)
        for pair in pairs
    ]
    return torch.tensor(lengths, dtype=torch.float64).sign()
