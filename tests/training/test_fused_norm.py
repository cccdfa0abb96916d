"""The norm that training computes with is the model's own, with a cheaper backward pass."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from stateset_agents.training.fused_norm import FusedRMSNorm, RMSNormFunction, fuse_norms


def norm_of(width: int, dtype: torch.dtype = torch.float32) -> LlamaRMSNorm:
    norm = LlamaRMSNorm(width, eps=1e-5)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.2, 2.0, width))
    return norm.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_forward_pass_is_the_model_s_to_the_bit(dtype: torch.dtype) -> None:
    norm = norm_of(48, dtype)
    x = (3 * torch.randn(7, 48, generator=torch.Generator().manual_seed(0))).to(dtype)

    assert torch.equal(FusedRMSNorm(norm)(x), norm(x))


def test_the_gradients_are_those_of_torch_s_own_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 16, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(16, generator=generator, dtype=torch.float64).requires_grad_()
    slope = torch.randn(2, 5, 16, generator=generator, dtype=torch.float64)

    found = torch.autograd.grad(RMSNormFunction.apply(x, weight, 1e-5), (x, weight), slope)
    expected = torch.autograd.grad(
        torch.nn.functional.rms_norm(x, (16,), weight, 1e-5), (x, weight), slope
    )

    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_norm_of_another_formula_is_left_in_place() -> None:
    class Shifted(LlamaRMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden_states) + hidden_states

    model = torch.nn.Sequential(LlamaRMSNorm(8), Shifted(8))

    assert fuse_norms(model) == 1
    assert [type(layer) for layer in model] == [FusedRMSNorm, Shifted]
