"""Root-mean-square norms that keep for the backward pass what they were given, and no more.

Owns the layer and its exchange for a model's own. transformers writes the norm as half a dozen
operations, each of which keeps a float32 copy of its input and adds a pass over it to the backward
pass. Here forward is the same to the bit, and backward is one formula.

Notation: D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class RMSNormFunction(torch.autograd.Function):
    """y = w x / sqrt(mean x^2 + eps) (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """`x` (..., D) and `weight` (D,) to (..., D); rounded to x's dtype before the weight."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With n = x / rms and g = dL/dy: dL/dx = (w g - n mean(w g n)) / rms; dL/dw = sum g n."""
        x, weight, scale = ctx.saved_tensors
        wide = x.to(scale.dtype)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            normed = (wide * scale).mul_(grad)
            grad_weight = normed.reshape(-1, x.shape[-1]).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            slope = grad.to(scale.dtype, copy=True).mul_(weight)
            along = torch.linalg.vecdot(slope, wide)[..., None]
            along = along.mul_(scale.pow(3)).div_(-x.shape[-1])
            grad_x = slope.mul_(scale).addcmul_(wide, along).to(x.dtype)
        return grad_x, grad_weight, None


class FusedRMSNorm(nn.Module):
    """A norm layer of a transformers model with `RMSNormFunction` as its forward pass."""

    def __init__(self, norm: Any) -> None:
        """Take over `norm`'s weight, the very same parameter, and its epsilon."""
        super().__init__()
        self.weight: nn.Parameter = norm.weight
        self.epsilon = float(norm.variance_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        result: Tensor = RMSNormFunction.apply(x, self.weight, self.epsilon)
        return result


@torch.no_grad()
def fuse_norms(model: nn.Module) -> int:
    """Exchange a model's norms that are this norm, to the bit; returns how many."""
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not (hasattr(child, "variance_epsilon") and hasattr(child, "weight")):
                continue
            fused = FusedRMSNorm(child)
            generator = torch.Generator().manual_seed(0)
            sample = torch.randn(4, len(fused.weight), generator=generator).to(fused.weight)
            if torch.equal(fused(sample), child(sample)):
                setattr(parent, name, fused)
                count += 1
    return count
