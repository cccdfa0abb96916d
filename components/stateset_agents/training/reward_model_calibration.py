"""From scores to probabilities, and how far to trust them.

Owns what is kept back from training for it, the temperature (Guo et al. 2017), the reliability
curve and its error.

Notation: P pairs, N answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from stateset_agents.rewards.reward_network import Calibration

Given = TypeVar("Given")

_LOWEST, _HIGHEST = math.log(0.02), math.log(50.0)


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Pairs of like confidence: their mean confidence, the share that was right, their number."""

    confidence: float
    accuracy: float
    pairs: int


def kept_back(
    given: Sequence[Given], *, share: float, seed: int
) -> tuple[list[Given], list[Given]]:
    """What is left to train on, and the share, two at least, that is not: drawn by the seed, both
    in the order in which they were given.
    """
    order = torch.randperm(len(given), generator=torch.Generator().manual_seed(seed + 1)).tolist()
    kept = max(2, round(share * len(given)))
    return [given[i] for i in sorted(order[kept:])], [given[i] for i in sorted(order[:kept])]


def fit_calibration(chosen: torch.Tensor, rejected: torch.Tensor) -> Calibration:
    """Temperature and centre from raw scores `(P,)` of pairs that were not trained on.

    The temperature minimises the cross entropy of `sigmoid((chosen - rejected) / temperature)`
    against targets of (P + 1) / (P + 2) instead of 1 (Platt 1999), without which pairs that are all
    ranked rightly would drive it to 0. The centre is the mean score of all answers.
    """
    difference = (chosen - rejected).double()
    target = (len(difference) + 1) / (len(difference) + 2)

    def cross_entropy(log_temperature: float) -> float:
        z = difference / math.exp(log_temperature)
        right, wrong = torch.nn.functional.logsigmoid(z), torch.nn.functional.logsigmoid(-z)
        return -(target * right + (1 - target) * wrong).mean().item()

    temperature = math.exp(_minimise(cross_entropy, _LOWEST, _HIGHEST))
    return Calibration(torch.cat([chosen, rejected]).mean().item(), temperature)


def fit_rated_calibration(scores: torch.Tensor, labels: torch.Tensor) -> Calibration:
    """Temperature and centre from raw scores `(N,)` of rated answers that were not trained on, and
    their labels in [0, 1]: Platt scaling (1999), a logistic regression on the score with his
    targets, `(G + 1) / (G + 2)` and `1 / (B + 2)` for G good and B bad answers in place of 1 and 0.
    """
    values = scores.double()
    good = labels.double().sum()
    high, low = (good + 1) / (good + 2), 1 / (len(labels) - good + 2)
    targets = low + labels.double() * (high - low)

    def cross_entropy(log_temperature: float, shift: float) -> float:
        logits = values / math.exp(log_temperature) - shift
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets).item()

    def best_shift(log_temperature: float) -> float:
        scaled = values / math.exp(log_temperature)
        limits = scaled.min().item() - 10, scaled.max().item() + 10
        return _minimise(lambda shift: cross_entropy(log_temperature, shift), *limits)

    log_temperature = _minimise(
        lambda value: cross_entropy(value, best_shift(value)), _LOWEST, _HIGHEST
    )
    temperature = math.exp(log_temperature)
    return Calibration(best_shift(log_temperature) * temperature, temperature)


def calibration_curve(probabilities: torch.Tensor, max_bins: int = 8) -> list[CalibrationBin]:
    """Bins of equal size by rising confidence.

    `probabilities` `(P,)` are those of the answer that people chose; where it is below one half,
    the model was wrong with the confidence of the other answer. A bin has 10 pairs or more where
    there are enough.
    """
    confidence, order = torch.maximum(probabilities, 1 - probabilities).sort()
    right = (probabilities > 0.5).double()[order]
    count = max(1, min(max_bins, len(confidence) // 10))
    return [
        CalibrationBin(some.mean().item(), hits.mean().item(), len(some))
        for some, hits in zip(
            confidence.tensor_split(count), right.tensor_split(count), strict=True
        )
        if len(some)
    ]


def expected_calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """The mean distance between confidence and accuracy, bins weighted by their pairs."""
    total = sum(one.pairs for one in bins)
    return sum(one.pairs * abs(one.confidence - one.accuracy) for one in bins) / total


def _minimise(function: Callable[[float], float], low: float, high: float) -> float:
    """The argument of a convex-like function's minimum by golden-section search."""
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(80):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if function(left) <= function(right):
            high = right
        else:
            low = left
    return (low + high) / 2
