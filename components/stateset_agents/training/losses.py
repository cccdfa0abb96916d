"""Policy losses per token, as pure functions of log-probs.

Owns the formulas. It does not know models, batches of conversations, nor how tokens are weighed
against each other (`batching.token_weights`): a step's loss is the sum of
`loss_weights * loss` over its tokens.

Notation: B rows, T tokens; every tensor is `(B, T)`, and a value where `loss_mask` is False never
reaches a result or a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stateset_agents.training.config import KLEstimator


@dataclass(frozen=True, slots=True, eq=False)
class TokenLosses:
    """What a loss function gives.

    Attributes:
        loss: `(B, T)`, to be minimised; 0 where `loss_mask` is False.
        clipped: `(B, T)` bool, True = the clip holds, so this token has no gradient.
        ratio: `(B, T)`, detached; the policy's probability over that of the old policy.
    """

    loss: torch.Tensor
    clipped: torch.Tensor
    ratio: torch.Tensor


def grpo_loss(
    policy_logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    loss_mask: torch.Tensor,
    *,
    clip_left: float,
    clip_right: float,
) -> TokenLosses:
    """-min(r A, clip(r, 1 - left, 1 + right) A) with r = pi(token) / pi_old(token).

    PPO's surrogate (Schulman et al. 2017, arXiv:1707.06347) on group-relative advantages (GRPO,
    Shao et al. 2024, arXiv:2402.03300); unequal clips are DAPO's "clip higher" (Yu et al. 2025,
    arXiv:2503.14476).
    """
    log_ratio = _masked(policy_logprobs - old_logprobs, loss_mask)
    return _clipped_surrogate(
        log_ratio.exp(), advantages, loss_mask, clip_left=clip_left, clip_right=clip_right
    )


def gspo_loss(
    policy_logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    loss_mask: torch.Tensor,
    *,
    clip_left: float,
    clip_right: float,
) -> TokenLosses:
    """The same surrogate with one ratio per row, s = exp(mean over its tokens of log r).

    GSPO, Zheng et al. 2025 (arXiv:2507.18071), equations 5 to 7. The geometric mean keeps s close
    to 1, so the clips are about a thousand times tighter than a token's. A row is the sequence: all
    that was sampled in one unbroken context.
    """
    log_ratio = _masked(policy_logprobs - old_logprobs, loss_mask)
    tokens = loss_mask.sum(dim=-1, keepdim=True).clamp(min=1)
    sequence_ratio = (log_ratio.sum(dim=-1, keepdim=True) / tokens).exp().expand_as(log_ratio)
    return _clipped_surrogate(
        sequence_ratio, advantages, loss_mask, clip_left=clip_left, clip_right=clip_right
    )


def kl_divergence(
    policy_logprobs: torch.Tensor,
    reference_logprobs: torch.Tensor,
    loss_mask: torch.Tensor,
    *,
    estimator: KLEstimator = "k3",
) -> torch.Tensor:
    """KL(policy || reference) per token, estimated from the sampled token alone.

    With d = log pi_ref - log pi: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1 (Schulman 2020,
    "Approximating KL divergence"). k1 and k3 are unbiased; k2 and k3 are never negative. As a term
    of a loss k3 is GRPO's equation 4; k1's gradient has mean 0, so it measures and does not steer.
    """
    difference = _masked(reference_logprobs - policy_logprobs, loss_mask)
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    return difference.exp() - difference - 1


def truncated_importance_weights(
    old_logprobs: torch.Tensor,
    sampling_logprobs: torch.Tensor,
    loss_mask: torch.Tensor,
    *,
    cap: float,
) -> torch.Tensor:
    """min(pi_old / pi_sampling, cap), detached: corrects for the engine computing log-probs a
    little differently than training does (Yao et al. 2025, "Your efficient RL framework secretly
    brings you off-policy RL training").
    """
    log_ratio = _masked(old_logprobs.detach() - sampling_logprobs, loss_mask)
    return log_ratio.exp().clamp(max=cap)


def _clipped_surrogate(
    ratio: torch.Tensor,
    advantages: torch.Tensor,
    loss_mask: torch.Tensor,
    *,
    clip_left: float,
    clip_right: float,
) -> TokenLosses:
    kept = ratio * advantages
    bounded = ratio.clamp(1 - clip_left, 1 + clip_right) * advantages
    clipped = ((ratio < 1 - clip_left) & (advantages < 0)) | (
        (ratio > 1 + clip_right) & (advantages > 0)
    )
    return TokenLosses(
        loss=_masked(-torch.minimum(kept, bounded), loss_mask),
        clipped=clipped & loss_mask,
        ratio=ratio.detach(),
    )


def _masked(values: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    # where, not a product: NaN times 0 is NaN, and padding may hold anything
    return torch.where(loss_mask, values, torch.zeros((), dtype=values.dtype, device=values.device))
