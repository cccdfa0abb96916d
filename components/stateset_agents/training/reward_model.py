"""Training a reward model on preference pairs, after Bradley and Terry (1952).

Owns the loss and what is measured on held-out pairs; the files of a report are the step's, the
loop `reward_model_fit`'s. Both answers of a pair, and pairs that begin alike, share the work on
their common beginning (`rewards.prefix_tree`).

Notation: P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from stateset_agents.data.schemas import PreferencePair
from stateset_agents.exceptions import DataError
from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.inference.loading import load_model, load_tokenizer
from stateset_agents.rewards.reward_network import RewardNetwork, conversation_tokens
from stateset_agents.training.reward_model_body import (
    SplitBody,
    keep_layers,
    trained_layer_count,
)
from stateset_agents.training.reward_model_calibration import (
    CalibrationBin,
    calibration_curve,
    expected_calibration_error,
    fit_calibration,
    kept_back,
)
from stateset_agents.training.reward_model_config import RewardModelConfig
from stateset_agents.training.reward_model_fit import (
    LossOfPack,
    PackLoss,
    Progress,
    fit,
    frozen_pass,
    new_head,
    scores_of,
    silent,
)

MIN_PAIRS = 8


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
    progress = on_progress or silent
    tokenizer = load_tokenizer(base_folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    body: Any = load_model(base_folder, dtype=config.dtype, device=device).base_model
    keep_layers(body, config.base_layers)
    split = SplitBody(body, trained_layer_count(body, config))
    head = new_head(body.config.hidden_size, config.seed).to(device)

    training, calibrating = kept_back(pairs, share=config.calibration_share, seed=config.seed)
    stages = {"train": training, "calibrate": calibrating, "heldout": list(heldout_pairs)}
    tokens = {name: _tokens(some, tokenizer, config.max_tokens) for name, some in stages.items()}
    packs = frozen_pass(tokens, split, config, progress, unit=2)
    loss_of = _pair_loss(training, config, device)
    curve = fit(packs["train"], loss_of, split, head, config, progress)
    split.merge()

    scores = {}
    for name, pairs_of_stage in stages.items():
        both = scores_of(packs[name], split, head, 2 * len(pairs_of_stage))
        scores[name] = (both[0::2], both[1::2])
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
        f"{MIN_PAIRS} of each, add pairs (of the retraining line: to data/preferences)"
        for name, given in (("training", pairs), ("held-out", heldout))
        if len(given) < MIN_PAIRS
    ]
    if problems:
        raise DataError(problems)


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


def _pair_loss(
    pairs: Sequence[PreferencePair], config: RewardModelConfig, device: str
) -> LossOfPack:
    """The loss of a pack, whose sequences 2p and 2p + 1 of all are pair p's answers."""
    margins = torch.tensor(
        [float(pair.metadata.get("margin", 0.0)) for pair in pairs], device=device
    )

    def loss_of(scores: torch.Tensor, indices: Sequence[int]) -> PackLoss:
        chosen, rejected = scores[0::2], scores[1::2]
        own = margins[[index // 2 for index in indices[::2]]]
        loss = bradley_terry_loss(chosen, rejected, own, config.center_coefficient)
        return PackLoss(loss, len(chosen), int((chosen > rejected).sum()))

    return loss_of


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
