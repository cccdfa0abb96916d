"""Advantages and returns from estimated values: generalized advantage estimation.

Owns the recursion and the whitening, as pure functions. It does not know the value function that
estimates.

Notation: B rows, T tokens; every tensor is `(B, T)`, and what it holds where `loss_mask` is False
reaches no result.
"""

from __future__ import annotations

import torch

# Added to a variance before its root is divided by, as verl does.
VARIANCE_EPSILON = 1e-8


def generalized_advantages(
    rewards: torch.Tensor,
    values: torch.Tensor,
    loss_mask: torch.Tensor,
    *,
    discount: float,
    trace_decay: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages A and returns A + V of each sampled token, 0 elsewhere.

    Schulman et al. 2016 (arXiv:1506.02438), equation 16: d_t = r_t + discount V_next - V_t and
    A_t = d_t + discount trace_decay A_next. "Next" is the next token that the policy sampled: what
    the environment says between two answers is no action, takes no discount and has no value.
    A row ends with value 0.
    """
    advantages = torch.zeros_like(values)
    next_value = torch.zeros_like(values[:, 0])
    next_advantage = torch.zeros_like(next_value)
    for token in reversed(range(values.shape[1])):
        sampled = loss_mask[:, token]
        surprise = rewards[:, token] + discount * next_value - values[:, token]
        advantage = surprise + discount * trace_decay * next_advantage
        next_value = torch.where(sampled, values[:, token], next_value)
        next_advantage = torch.where(sampled, advantage, next_advantage)
        advantages[:, token] = torch.where(sampled, advantage, 0.0)
    return advantages, torch.where(loss_mask, advantages + values, 0.0)


def whitened(values: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """Mean 0 and (unbiased) variance 1 over the sampled tokens of all rows, 0 elsewhere. A single
    token, and tokens that are all equal, become 0.
    """
    own = values[loss_mask]
    centred = own - own.mean() if len(own) else own
    if len(own) > 1:
        centred = centred * torch.rsqrt(own.var() + VARIANCE_EPSILON)
    return torch.zeros_like(values).masked_scatter(loss_mask, centred)
