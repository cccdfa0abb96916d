"""Training a reward model on answers that were rated one by one.

Owns the loss and what is measured on held-out answers. The model, the loop and the folder are those
of the reward model of pairs; only what the scores are held to differs.

A rating says of an answer by itself whether it is good, so its score becomes a probability by
itself: binary cross entropy, `-y log sigmoid(s) - (1 - y) log(1 - sigmoid(s))`. Pairs would have to
be made of answers to different questions, and would teach which questions are easy (Bradley-Terry
is for two answers to one question). Rare labels are not weighed up: the score is to be a
probability, and how it ranks answers does not depend on it.

Notation: N answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from stateset_agents.data.preference_forms import RatedAnswer
from stateset_agents.exceptions import DataError
from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.inference.loading import load_model, load_tokenizer
from stateset_agents.rewards.reward_network import RewardNetwork, conversation_tokens
from stateset_agents.training.reward_model import MIN_PAIRS, TrainedRewardModel
from stateset_agents.training.reward_model_body import (
    SplitBody,
    keep_layers,
    trained_layer_count,
)
from stateset_agents.training.reward_model_calibration import (
    calibration_curve,
    expected_calibration_error,
    fit_rated_calibration,
    kept_back,
)
from stateset_agents.training.reward_model_config import RewardModelConfig
from stateset_agents.training.reward_model_fit import (
    PackLoss,
    Progress,
    fit,
    frozen_pass,
    new_head,
    scores_of,
    silent,
)


def train_rated_reward_model(
    answers: Sequence[RatedAnswer],
    heldout: Sequence[RatedAnswer],
    base_folder: Path | str,
    config: RewardModelConfig,
    on_progress: Progress | None = None,
) -> TrainedRewardModel:
    """Train on `answers`, calibrate on some that are kept back, measure on `heldout`.

    The metrics: `heldout_auc` (how often a good answer has a higher score than a bad one) and
    `length_baseline_auc` (the same by the number of characters, longer or shorter as it is better
    on the training answers), `heldout_accuracy` at a probability of one half,
    `majority_baseline_accuracy`, `heldout_loss` in nats. They count a label above 0.5 as good.

    Raises:
        DataError: too few answers, or answers that are all good or all bad.
        ModelSourceError: the base model's folder cannot be read.
        NonFiniteLossError: the loss is NaN or infinite; the weights were not touched by it.
    """
    _check(answers, heldout)
    progress = on_progress or silent
    tokenizer = load_tokenizer(base_folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    body: Any = load_model(base_folder, dtype=config.dtype, device=device).base_model
    keep_layers(body, config.base_layers)
    split = SplitBody(body, trained_layer_count(body, config))
    head = new_head(body.config.hidden_size, config.seed).to(device)

    training, calibrating = kept_back(answers, share=config.calibration_share, seed=config.seed)
    _check_both_kinds(training, calibrating)
    stages = {"train": training, "calibrate": calibrating, "heldout": list(heldout)}
    tokens = {name: _tokens(some, tokenizer, config) for name, some in stages.items()}
    packs = frozen_pass(tokens, split, config, progress, unit=1)
    labels = torch.tensor([one.label for one in training], device=device)

    def loss_of(scores: torch.Tensor, indices: Sequence[int]) -> PackLoss:
        wanted = labels[list(indices)]
        right = int(((scores > 0) == (wanted > 0.5)).sum())
        return PackLoss(F.binary_cross_entropy_with_logits(scores, wanted), len(wanted), right)

    curve = fit(packs["train"], loss_of, split, head, config, progress)
    split.merge()
    scores = {name: scores_of(packs[name], split, head, len(stages[name])) for name in stages}
    calibration = fit_rated_calibration(scores["calibrate"], _labels(calibrating))
    network = RewardNetwork(body, head, config.max_tokens, calibration).eval()
    logits = (scores["heldout"] - calibration.centre) / calibration.temperature
    metrics = _metrics(logits, stages)
    metrics |= {"temperature": calibration.temperature, "centre": calibration.centre}
    good = _labels(heldout) > 0.5
    bins = calibration_curve(torch.sigmoid(torch.where(good, logits, -logits)))
    metrics["calibration_error"] = expected_calibration_error(bins)
    return TrainedRewardModel(network, tokenizer, metrics, curve, bins)


def area_under_curve(scores: torch.Tensor, good: torch.Tensor) -> float:
    """The share of (good, bad) pairs in which the good one has the higher score, ties a half.

    `scores` `(N,)`, `good` `(N,)` bool with both kinds in it (Mann-Whitney's U over their product).
    """
    _, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    middle_ranks = counts.cumsum(0).double() - (counts.double() - 1) / 2
    ranks = middle_ranks[inverse]
    num_good, num_bad = int(good.sum()), int((~good).sum())
    above = float(ranks[good].sum()) - num_good * (num_good + 1) / 2
    return above / (num_good * num_bad)


def _check(answers: Sequence[RatedAnswer], heldout: Sequence[RatedAnswer]) -> None:
    problems = []
    for name, given in (("training", answers), ("held-out", heldout)):
        good = sum(one.label > 0.5 for one in given)
        if len(given) < MIN_PAIRS or good in (0, len(given)):
            problems.append(
                f"{len(given)} {name} answers were given, {good} of them good; a reward model "
                f"needs at least {MIN_PAIRS}, good ones and bad ones: add rated answers"
            )
    if problems:
        raise DataError(problems)


def _check_both_kinds(training: Sequence[RatedAnswer], calibrating: Sequence[RatedAnswer]) -> None:
    good = sum(one.label > 0.5 for one in training)
    if good in (0, len(training)):
        raise DataError(
            f"of the {len(training)} answers that are left to train on, {good} are good: the "
            f"{len(calibrating)} kept back for calibration hold all of the other kind; add rated "
            "answers of it, or lower calibration_share"
        )


def _tokens(
    answers: Sequence[RatedAnswer], tokenizer: ChatTokenizer, config: RewardModelConfig
) -> list[list[list[int]]]:
    return [[conversation_tokens(tokenizer, one.messages, config.max_tokens)] for one in answers]


def _labels(answers: Sequence[RatedAnswer]) -> torch.Tensor:
    return torch.tensor([one.label for one in answers], dtype=torch.float64)


def _metrics(logits: torch.Tensor, stages: dict[str, list[RatedAnswer]]) -> dict[str, float]:
    labels = _labels(stages["heldout"])
    good = labels > 0.5
    lengths = {
        name: torch.tensor([one.answer_length for one in stages[name]], dtype=torch.float64)
        for name in ("train", "heldout")
    }
    seen = area_under_curve(lengths["train"], _labels(stages["train"]) > 0.5)
    direction = 1 if seen >= 0.5 else -1
    share = good.double().mean().item()
    return {
        "heldout_auc": area_under_curve(logits, good),
        "length_baseline_auc": area_under_curve(direction * lengths["heldout"], good),
        "heldout_accuracy": ((logits > 0) == good).double().mean().item(),
        "majority_baseline_accuracy": max(share, 1 - share),
        "heldout_loss": F.binary_cross_entropy_with_logits(logits, labels).item(),
        "heldout_answers": float(len(labels)),
        "train_answers": float(len(stages["train"])),
        "calibration_answers": float(len(stages["calibrate"])),
    }
