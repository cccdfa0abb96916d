"""Low-rank adapters whose forward pass runs on the merged weights.

PEFT's own layer computes W x and B A x apart, in float32 for a float32 adapter, and adds them:
three more passes over the activations for each linear layer. Here W + s B A is rounded to the
model's dtype once per optimizer step and used as the one weight of the forward pass. So an adapted
layer costs what a frozen one does, and the policy that is trained is, to the bit, the one that the
engine samples from, which gets the same merged weights.

Owns that layer. It does not know models or optimizers. Adapters are saved and loaded by PEFT.

Notation: N positions, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from transformers.pytorch_utils import Conv1D

from stateset_agents.inference.rounding import round_weights


class MergedLinear(torch.autograd.Function):
    """y = x W'^T + bias with W' = W + s B A given, differentiable in x, A and B (not in W).

    Backward, with G = dL/dy: dL/dx = G W'; dL/dB = s G^T (x A^T); dL/dA = s (G B)^T x. The rounding
    of W' is passed straight through, as with any master weights (Micikevicius et al. 2018,
    arXiv:1710.03740). LoRA: Hu et al. 2021, arXiv:2106.09685.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        merged_weight: torch.Tensor,
        bias: torch.Tensor | None,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """`x` (..., I), `merged_weight` (O, I), `lora_a` (R, I), `lora_b` (O, R) to (..., O)."""
        ctx.save_for_backward(x, merged_weight, lora_a, lora_b)
        ctx.scaling = scaling
        return torch.nn.functional.linear(x, merged_weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of `x`, `lora_a` and `lora_b`; the adapter's are in its own dtype."""
        x, merged_weight, lora_a, lora_b = ctx.saved_tensors
        grad_x = grad @ merged_weight if ctx.needs_input_grad[0] else None
        rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        down, up = lora_a.to(x.dtype), lora_b.to(x.dtype)
        grad_b = grad_rows.t() @ (rows @ down.t())
        grad_a = (grad_rows @ up).t() @ rows
        return (
            grad_x,
            None,
            None,
            grad_a.to(lora_a.dtype) * ctx.scaling,
            grad_b.to(lora_b.dtype) * ctx.scaling,
            None,
        )


class MergedLoraLinear(Linear):
    """PEFT's LoRA layer with `MergedLinear` as its forward pass; has exactly one adapter.

    `use_base` True makes it the frozen layer that it wraps: the reference policy.
    """

    def __init__(self, base_layer: torch.nn.Module, adapter_name: str, **kwargs: Any) -> None:
        is_conv1d = isinstance(base_layer, Conv1D)
        if is_conv1d:
            kwargs["config"].fan_in_fan_out = True
        super().__init__(base_layer, adapter_name, is_target_conv_1d_layer=is_conv1d, **kwargs)
        self.adapter = adapter_name
        self.use_base = False
        self.has_dropout = not isinstance(self.lora_dropout[adapter_name], torch.nn.Identity)
        self.merged_weight: torch.Tensor | None = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Merge again, after the adapter has changed."""
        weight = cast(torch.Tensor, self.base_layer.weight)
        delta = self.get_delta_weight(self.adapter)
        self.merged_weight = round_weights(weight.to(delta.dtype) + delta, weight.dtype)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(..., I) to (..., O)."""
        if self.use_base:
            base: torch.Tensor = self.base_layer(x)
            return base
        if self.has_dropout and self.training:
            # dropout lies between x and A, so A x is not W' x: only PEFT's own form can express it
            dropped: torch.Tensor = super().forward(x, *args, **kwargs)
            return dropped
        if self.merged_weight is None:
            self.refresh()
        weight = self.merged_weight.t() if self.fan_in_fan_out else self.merged_weight  # type: ignore[union-attr]
        result: torch.Tensor = MergedLinear.apply(
            x,
            weight,
            self.base_layer.bias,
            self.lora_A[self.adapter].weight,
            self.lora_B[self.adapter].weight,
            self.scaling[self.adapter],
        )
        return result
