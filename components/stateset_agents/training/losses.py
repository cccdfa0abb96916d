"""Policy losses per token, as pure functions of log-probs.

Owns the formulas. It does not know models, batches of conversations, nor how tokens are weighed
against each other (`batching.token_weights`): a step's loss is the sum of
`loss_weights * loss` over its tokens.

Notation: B rows, T tokens; every tensor is `(B, T)`, and a value where `loss_mask` is False never
reaches a result or a gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NotRequired, TypedDict, Unpack

import torch

from stateset_agents.training.config import (
    ImportanceSampling,
    ImportanceSamplingLevel,
    KLEstimator,
)


@dataclass(frozen=True, slots=True, eq=False)
class TokenLosses:
    """What a loss function gives.

    Attributes:
        loss: `(B, T)`, to be minimised; 0 where `loss_mask` is False.
        clipped: `(B, T)` bool, True = the clip holds: this token has no gradient, or (CISPO) one
            whose weight is the bound.
        ratio: `(B, T)`, detached; the policy's probability over that of the old policy.
    """

    loss: torch.Tensor
    clipped: torch.Tensor
    ratio: torch.Tensor


class Clips(TypedDict):
    """Bounds of a ratio: distances below and above 1, and a cap on the first term (None: none)."""

    clip_left: float
    clip_right: float
    ratio_cap: NotRequired[float | None]


def grpo_loss(
    policy_logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    loss_mask: torch.Tensor,
    **clips: Unpack[Clips],
) -> TokenLosses:
    """-min(r A, clip(r, 1 - left, 1 + right) A) with r = pi(token) / pi_old(token).

    PPO's surrogate (Schulman et al. 2017, arXiv:1707.06347) on group-relative advantages (GRPO,
    Shao et al. 2024, arXiv:2402.03300); unequal clips are DAPO's "clip higher" (Yu et al. 2025,
    arXiv:2503.14476). `ratio_cap` bounds r in the first term as well, so that a bad token that has
    become far likelier cannot take over the step (INTELLECT-2, 2025, arXiv:2505.07291).
    """
    log_ratio = _masked(policy_logprobs - old_logprobs, loss_mask)
    return _clipped_surrogate(log_ratio.exp(), advantages, loss_mask, **clips)


def gspo_loss(
    policy_logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    loss_mask: torch.Tensor,
    **clips: Unpack[Clips],
) -> TokenLosses:
    """The same surrogate with one ratio per row, s = exp(mean over its tokens of log r).

    GSPO, Zheng et al. 2025 (arXiv:2507.18071), equations 5 to 7. The geometric mean keeps s close
    to 1, so the clips are about a thousand times tighter than a token's. A row is the sequence: all
    that was sampled in one unbroken context. A conversation of several rows has a ratio for each.
    """
    log_ratio = _masked(policy_logprobs - old_logprobs, loss_mask)
    ratio = _sequence_mean(log_ratio, loss_mask).exp()
    return _clipped_surrogate(ratio, advantages, loss_mask, **clips)


def gspo_token_loss(
    policy_logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    loss_mask: torch.Tensor,
    **clips: Unpack[Clips],
) -> TokenLosses:
    """GSPO with an advantage per token: the ratio is sg[s] pi / sg[pi], sg = no gradient.

    Equation 13 of arXiv:2507.18071. Its value is the row's s everywhere and its gradient each
    token's own, so with one advantage per row loss and gradient are GSPO's.
    """
    log_ratio = _masked(policy_logprobs - old_logprobs, loss_mask)
    own = _masked(policy_logprobs, loss_mask)
    sequence = _sequence_mean(log_ratio, loss_mask).detach()
    ratio = (sequence + own - own.detach()).exp()
    return _clipped_surrogate(ratio, advantages, loss_mask, **clips)


def cispo_loss(
    policy_logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    loss_mask: torch.Tensor,
    *,
    clip_left: float | None,
    clip_right: float,
) -> TokenLosses:
    """-sg[clip(r, 1 - left, 1 + right)] A log pi: the weight is bounded, no token is dropped.

    CISPO, MiniMax-M1, 2025 (arXiv:2506.13585); `clip_left` None, as there, is no lower bound. The
    loss's value has no meaning beyond its gradient.
    """
    ratio = _masked(policy_logprobs - old_logprobs, loss_mask).exp().detach()
    lowest = None if clip_left is None else 1 - clip_left
    weight = ratio.clamp(min=lowest, max=1 + clip_right)
    gain = weight * _masked(advantages, loss_mask) * _masked(policy_logprobs, loss_mask)
    return TokenLosses(
        loss=-gain,
        clipped=(weight != ratio) & loss_mask,
        ratio=ratio,
    )


def sapo_loss(
    policy_logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    loss_mask: torch.Tensor,
    *,
    temperature_positive: float,
    temperature_negative: float,
) -> TokenLosses:
    """-f(r) A with f(r) = 4 / tau * sigmoid(tau (r - 1)): a gate that fades instead of a clip.

    SAPO, Gao et al. 2025 (arXiv:2511.20347). f'(1) = 1, so on-policy the
    gradient is that of the ratio. tau is `temperature_positive` where A > 0; a higher one for the
    others damps what pushes tokens down.
    """
    ratio = _masked(policy_logprobs - old_logprobs, loss_mask).exp()
    advantages = _masked(advantages, loss_mask)
    tau = torch.where(advantages > 0, temperature_positive, temperature_negative)
    gate = torch.sigmoid(tau * (ratio - 1)) * 4 / tau
    return TokenLosses(
        loss=-gate * advantages,
        clipped=torch.zeros_like(loss_mask),
        ratio=ratio.detach(),
    )


def ratio_loss(
    policy_logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    loss_mask: torch.Tensor,
) -> TokenLosses:
    """-r A, unbounded: TRPO's surrogate, which a limit on the KL divergence holds back instead of a
    clip (Schulman et al. 2015, arXiv:1502.05477, equation 14).
    """
    ratio = _masked(policy_logprobs - old_logprobs, loss_mask).exp()
    return TokenLosses(
        loss=-ratio * _masked(advantages, loss_mask),
        clipped=torch.zeros_like(loss_mask),
        ratio=ratio.detach(),
    )


def log_likelihood_loss(
    policy_logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    loss_mask: torch.Tensor,
) -> TokenLosses:
    """-A log pi: the policy gradient itself, right for the policy that sampled and for no other.

    REINFORCE (Williams 1992) and, with advantages from a critic, A2C (Mnih et al. 2016,
    arXiv:1602.01783, algorithm S3). The loss's value has no meaning beyond its gradient.
    """
    return TokenLosses(
        loss=-_masked(advantages, loss_mask) * _masked(policy_logprobs, loss_mask),
        clipped=torch.zeros_like(loss_mask),
        ratio=_masked(policy_logprobs - old_logprobs, loss_mask).exp().detach(),
    )


def kl_divergence(
    policy_logprobs: torch.Tensor,
    reference_logprobs: torch.Tensor,
    loss_mask: torch.Tensor,
    *,
    estimator: KLEstimator = "k3",
    old_logprobs: torch.Tensor | None = None,
) -> torch.Tensor:
    """KL(policy || reference) per token, estimated from the sampled token alone.

    With d = log pi_ref - log pi: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1 (Schulman 2020,
    "Approximating KL divergence"). k1 and k3 are unbiased; k2 and k3 are never negative. As a term
    of a loss k3 is GRPO's equation 4; k1's gradient has mean 0, so it measures and does not steer.

    With `old_logprobs` it is multiplied by the token's ratio pi / pi_old, gradient included, which
    makes k1's and k3's gradients those of the divergence itself, off-policy too (DeepSeek-V3.2,
    2025, arXiv:2512.02556). The ratio is the token's for every algorithm: a sequence's
    would not have that property.
    """
    difference = _masked(reference_logprobs - policy_logprobs, loss_mask)
    if estimator == "k1":
        divergence = -difference
    elif estimator == "k2":
        divergence = difference.square() / 2
    else:
        divergence = difference.exp() - difference - 1
    if old_logprobs is None:
        return divergence
    return divergence * _masked(policy_logprobs - old_logprobs, loss_mask).exp()


def importance_weights(
    old_logprobs: torch.Tensor,
    sampling_logprobs: torch.Tensor,
    loss_mask: torch.Tensor,
    *,
    cap: float,
    floor: float = 0.0,
    mode: ImportanceSampling = "truncate",
    level: ImportanceSamplingLevel = "token",
) -> torch.Tensor:
    """pi_old / pi_sampling, held in a band, detached: corrects for conversations that another
    policy sampled than the one that training takes for the old one, be it an engine that computes
    log-probs a little differently or weights that are a step behind.

    `truncate`: min(ratio, cap) (TIS, Yao et al. 2025, "Your efficient RL framework secretly brings
    you off-policy RL training"). `mask`: the ratio where floor <= ratio <= cap, else 0 (IcePop,
    Ring-1T, 2025, arXiv:2510.18855, with 0.5 and 5). The ratio is a token's, or with
    `level="sequence"` the product over the row's sampled tokens (MIS, Liu et al. 2025, "When speed
    kills stability").
    """
    log_ratio = _masked(old_logprobs.detach() - sampling_logprobs, loss_mask)
    if level == "sequence":
        log_ratio = log_ratio.sum(dim=-1, keepdim=True).expand_as(log_ratio)
    ratio = log_ratio.exp()
    if mode == "truncate":
        return _masked(ratio.clamp(max=cap), loss_mask)
    return _masked(ratio, loss_mask & (ratio >= floor) & (ratio <= cap))


def _sequence_mean(values: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """Mean over a row's sampled tokens, at each of its places; `values` is 0 elsewhere."""
    tokens = loss_mask.sum(dim=-1, keepdim=True).clamp(min=1)
    return (values.sum(dim=-1, keepdim=True) / tokens).expand_as(values)


def _clipped_surrogate(
    ratio: torch.Tensor,
    advantages: torch.Tensor,
    loss_mask: torch.Tensor,
    *,
    clip_left: float,
    clip_right: float,
    ratio_cap: float | None = None,
) -> TokenLosses:
    # before they meet the ratio: a row may share one, and so each other's gradient
    advantages = _masked(advantages, loss_mask)
    cap = math.inf if ratio_cap is None else ratio_cap
    kept = ratio.clamp(max=cap) * advantages
    bounded = ratio.clamp(1 - clip_left, 1 + clip_right) * advantages
    # a good token is held by the tighter of cap and upper clip, a bad one by the looser
    too_low = (ratio < 1 - clip_left) | (ratio > max(cap, 1 + clip_right))
    too_high = ratio > min(cap, 1 + clip_right)
    clipped = (too_low & (advantages < 0)) | (too_high & (advantages > 0))
    return TokenLosses(
        loss=-torch.minimum(kept, bounded),
        clipped=clipped,
        ratio=ratio.detach(),
    )


def _masked(values: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    # where, not a product: NaN times 0 is NaN, and padding may hold anything
    return torch.where(loss_mask, values, torch.zeros((), dtype=values.dtype, device=values.device))
