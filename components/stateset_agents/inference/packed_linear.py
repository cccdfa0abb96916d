"""Linear layers whose weights lie in the order in which the processor multiplies them.

Owns the packing for bfloat16 on x86 and Arm processors, through the oneDNN operators that torch
itself uses when it freezes a model. The product of a few rows then no longer begins by reordering
the whole weight. Where torch lacks the operators, nothing is packed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """An `nn.Linear` with a second, packed copy of its weight, used in place of the first.

    It computes without gradients. After the weight was written to, call `pack` again.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # The very same parameters, under the same names: tied weights stay tied.
        self.weight, self.bias = linear.weight, linear.bias
        self._packed: Tensor | None = None
        self.pack()

    def pack(self) -> None:
        """Make the packed copy from the weight as it is now."""
        with torch.no_grad():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), None)

    def forward(self, inputs: Tensor) -> Tensor:
        """`(..., in_features)` to `(..., out_features)`."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._packed, self.bias, "none", [], ""
        )
        return output


def can_pack(weight: Tensor) -> bool:
    """True where a packed product is possible and pays: bfloat16 on a CPU with oneDNN."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def pack_linears(model: nn.Module) -> list[PackedLinear]:
    """Replace every `nn.Linear` that can be packed; returns the replacements."""
    packed = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and can_pack(child.weight):
                replacement = PackedLinear(child)
                setattr(parent, name, replacement)
                packed.append(replacement)
    return packed
