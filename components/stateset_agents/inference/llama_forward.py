"""The forward pass of the Llama family, in few and large operations.

Owns the arithmetic of Llama, Mistral, Qwen 2 and Qwen 3 as transformers defines it, with the same
intermediate roundings, on packed rows of tokens and without gradients: query, key and value are one
product, gate and up another, and nothing is passed around that a decode step does not need. It
knows no requests; what attention reads is `attention.py`'s.

Notation: N packed tokens, H hidden width, K key-value heads, Q query heads for each, D head width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from stateset_agents.inference.attention import AttentionPlan, attend
from stateset_agents.inference.packed_linear import PackedLinear, can_pack

# Exact types: a subclass may compute something else.
_FAMILY = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One decoder layer's parameters. `head_norms` are query's and key's, None but for Qwen 3."""

    index: int
    attention_norm: Tensor
    qkv: nn.Module
    head_norms: tuple[Tensor, Tensor] | None
    output: nn.Module
    mlp_norm: Tensor
    gate_up: nn.Module
    down: nn.Module


class LlamaForward:
    """Logits of packed rows, by a model for which `serves` is True.

    The model's query, key, value, gate and up weights become views of the joined matrices, so they
    take no second copy and a write to a parameter is a write to the matrix.

    Args:
        model: keeps its parameters and names.
        pack_weights: multiply packed copies where that is possible; see `packed_linear.py`.
    """

    def __init__(self, model: PreTrainedModel, *, pack_weights: bool) -> None:
        whole: Any = model
        config = whole.config
        self._packed: list[PackedLinear] = []
        self._embedding: nn.Module = whole.model.embed_tokens
        self._rotary: nn.Module = whole.model.rotary_emb
        self._norm: Tensor = whole.model.norm.weight
        self._epsilon: float = config.rms_norm_eps
        first = whole.model.layers[0].self_attn
        self._head_width: int = first.head_dim
        self._kv_heads: int = config.num_key_value_heads
        self._query_heads: int = config.num_attention_heads
        self._scale: float = first.scaling
        with torch.no_grad():
            self._layers = [
                self._layer(index, layer, pack_weights)
                for index, layer in enumerate(whole.model.layers)
            ]
            self._head = self._linear([whole.lm_head], pack_weights)

    @staticmethod
    def serves(model: PreTrainedModel) -> bool:
        """True if this computes what the model's own forward would, down to its adapters."""
        if type(model) not in _FAMILY:
            return False
        config: Any = model.config
        linears = [
            module
            for name, module in model.named_modules()
            if name.rpartition(".")[2].endswith(("_proj", "lm_head"))
        ]
        biased = [
            [getattr(attention, name).bias is not None for name in ("q_proj", "k_proj", "v_proj")]
            for attention in (layer.self_attn for layer in model.model.layers)
        ]
        return (
            config.hidden_act == "silu"
            and all(type(linear) is nn.Linear for linear in linears)
            and all(len(set(flags)) == 1 for flags in biased)
            and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        )

    def pack(self) -> None:
        """Take up weights that were written to."""
        for linear in self._packed:
            linear.pack()

    def __call__(self, token_ids: Tensor, plan: AttentionPlan, last: Tensor) -> Tensor:
        """Logits `(B, V)` of the rows `last`, `(B,)`, of the tokens `(N,)` that the plan packs."""
        hidden = self._embedding(token_ids)
        cos, sin = self._rotary(hidden.unsqueeze(0), plan.positions.unsqueeze(0))
        # The half that rotates into the first one does so with a minus sign: it goes into the sine,
        # and the rotation is one roll.
        half = self._head_width // 2
        cos, sin = cos[0].unsqueeze(1), sin[0].unsqueeze(1)
        sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        for layer in self._layers:
            attended = self._attention(
                layer, self._normed(hidden, layer.attention_norm), cos, sin, plan
            )
            hidden += layer.output(attended)
            gate, up = layer.gate_up(self._normed(hidden, layer.mlp_norm)).chunk(2, dim=-1)
            hidden += layer.down(nn.functional.silu(gate).mul_(up))
        logits: Tensor = self._head(self._normed(hidden[last], self._norm))
        return logits

    def _attention(
        self, layer: _Layer, normed: Tensor, cos: Tensor, sin: Tensor, plan: AttentionPlan
    ) -> Tensor:
        """`(N, H)` to `(N, K * Q * D)`."""
        count, width = normed.shape[0], self._head_width
        heads = layer.qkv(normed).view(count, -1, width)
        turning = heads[:, : self._query_heads + self._kv_heads]
        if layer.head_norms is not None:
            query, key = layer.head_norms
            turning = torch.cat(
                (
                    self._normed(turning[:, : self._query_heads], query),
                    self._normed(turning[:, self._query_heads :], key),
                ),
                dim=1,
            )
        turned = turning * cos
        turned += turning.roll(width // 2, -1) * sin
        queries = turned[:, : self._query_heads] * self._scale
        attended = attend(
            plan,
            layer.index,
            queries.view(count, self._kv_heads, -1, width),
            turned[:, self._query_heads :],
            heads[:, -self._kv_heads :],
        )
        return attended.reshape(count, -1)

    def _normed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm over the last dimension, computed in float32 and rounded before the weight."""
        wide = hidden.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._epsilon)
        return weight * (wide * scale).to(hidden.dtype)

    # Set-up

    def _layer(self, index: int, layer: Any, pack_weights: bool) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        head_norms = None
        if hasattr(attention, "q_norm"):
            head_norms = attention.q_norm.weight, attention.k_norm.weight
        return _Layer(
            index=index,
            attention_norm=layer.input_layernorm.weight,
            qkv=self._linear([attention.q_proj, attention.k_proj, attention.v_proj], pack_weights),
            head_norms=head_norms,
            output=self._linear([attention.o_proj], pack_weights),
            mlp_norm=layer.post_attention_layernorm.weight,
            gate_up=self._linear([mlp.gate_proj, mlp.up_proj], pack_weights),
            down=self._linear([mlp.down_proj], pack_weights),
        )

    def _linear(self, parts: Sequence[nn.Linear], pack_weights: bool) -> nn.Module:
        linear = parts[0] if len(parts) == 1 else _joined(parts)
        if not (pack_weights and can_pack(linear.weight)):
            return linear
        packed = PackedLinear(linear)
        self._packed.append(packed)
        return packed


def _joined(parts: Sequence[nn.Linear]) -> nn.Linear:
    """One layer that computes what its parts do, whose weights become views of its own."""
    sizes = [part.out_features for part in parts]
    biased = parts[0].bias is not None
    joined = nn.Linear(parts[0].in_features, sum(sizes), bias=biased, device="meta")
    for name in ("weight", "bias") if biased else ("weight",):
        whole = torch.cat([getattr(part, name).detach() for part in parts])
        setattr(joined, name, nn.Parameter(whole, requires_grad=False))
        for part, view in zip(parts, whole.split(sizes), strict=True):
            getattr(part, name).data = view
    return joined
