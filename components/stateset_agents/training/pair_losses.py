"""Losses on preference pairs that train a policy without a reward model, as pure functions.

Owns the formulas of direct preference optimisation. It does not know models, nor how a pair's
log-probs come about; the loss that trains a reward model is `reward_model.bradley_terry_loss`.

Notation: P pairs; every tensor is `(P,)`. h is a pair's difference of log-ratios,
(log pi - log pi_ref)(chosen) - (log pi - log pi_ref)(rejected).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from stateset_agents.training.algorithms import PairLoss


@dataclass(frozen=True, slots=True, eq=False)
class PairLogprobs:
    """What a pair loss is a function of.

    Attributes:
        chosen: log pi of the preferred answers, summed over their tokens.
        rejected: the same of the others.
        reference_chosen: log pi_ref of the preferred answers.
        reference_rejected: the same of the others.
        chosen_tokens: how many tokens were summed; an answer of none counts as one.
        rejected_tokens: the same of the others.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    reference_chosen: torch.Tensor
    reference_rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor

    @property
    def difference(self) -> torch.Tensor:
        """h: by how much more than the reference the policy prefers the chosen answer, in nats."""
        return (self.chosen - self.reference_chosen) - (self.rejected - self.reference_rejected)

    @property
    def mean_difference(self) -> torch.Tensor:
        """The same with each answer's log-ratio divided by its tokens."""
        chosen = (self.chosen - self.reference_chosen) / self.chosen_tokens.clamp(min=1)
        rejected = (self.rejected - self.reference_rejected) / self.rejected_tokens.clamp(min=1)
        return chosen - rejected


def pair_loss(
    pairs: PairLogprobs, *, variant: PairLoss, beta: float, label_smoothing: float = 0.0
) -> torch.Tensor:
    """The loss of each pair `(P,)`, to be minimised.

    - `sigmoid`: -log sigmoid(beta h). DPO, Rafailov et al. 2023 (arXiv:2305.18290), equation 7.
    - `hinge`: max(0, 1 - beta h). SLiC, Zhao et al. 2023 (arXiv:2305.10425), as in RSO.
    - `ipo`: (h' - 1 / (2 beta))^2, h' with log-ratios averaged over tokens. Azar et al. 2023
      (arXiv:2310.12036), equation 17; beta is its tau.
    - `robust`: the sigmoid loss made unbiased where a share e = `label_smoothing` of the labels is
      the wrong way round, ((1 - e) L(h) - e L(-h)) / (1 - 2 e). Chowdhury et al. 2024
      (arXiv:2403.00409).
    - `sigmoid_norm`: -log sigmoid(beta h'). Length-normalised DPO, Lambert et al. 2024
      (arXiv:2411.15124).

    Raises:
        ValueError: `label_smoothing` is not in [0, 0.5), or is set for another variant than
            `robust`.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing={label_smoothing} is the share of labels that are wrong; allowed is "
            "0 up to, not including, 0.5, where labels say nothing"
        )
    if label_smoothing and variant != "robust":
        raise ValueError(
            f'label_smoothing={label_smoothing} has no effect with variant="{variant}": set '
            'variant="robust" or label_smoothing=0'
        )
    if variant == "robust":
        scaled = beta * pairs.difference
        clean, flipped = -F.logsigmoid(scaled), -F.logsigmoid(-scaled)
        weighed = (1 - label_smoothing) * clean - label_smoothing * flipped
        return weighed / (1 - 2 * label_smoothing)
    return _LOSSES[variant](pairs, beta)


def _sigmoid(pairs: PairLogprobs, beta: float) -> torch.Tensor:
    return -F.logsigmoid(beta * pairs.difference)


def _hinge(pairs: PairLogprobs, beta: float) -> torch.Tensor:
    return F.relu(1 - beta * pairs.difference)


def _ipo(pairs: PairLogprobs, beta: float) -> torch.Tensor:
    return (pairs.mean_difference - 1 / (2 * beta)).square()


def _sigmoid_norm(pairs: PairLogprobs, beta: float) -> torch.Tensor:
    return -F.logsigmoid(beta * pairs.mean_difference)


_LOSSES: dict[PairLoss, Callable[[PairLogprobs, float], torch.Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "sigmoid_norm": _sigmoid_norm,
}
