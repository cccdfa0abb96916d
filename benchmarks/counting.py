"""What a step has to compute and to move, counted from shapes alone.

Owns the formulas. They count what the result needs, each shared prefix once, and nothing that an
implementation does on top (recomputation, padding, merging an adapter), so a share of the machine's
limit says how well the time is spent.

Notation: P parameters of the linear layers of the body, L layers, D head width, H query heads, K
key-value heads, C hidden size, V vocabulary, R the adapter's rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.workloads import Workload


@dataclass(frozen=True)
class ModelSizes:
    """The sizes that the formulas need.

    Attributes:
        linear: P.
        adapter: parameters of a LoRA adapter of rank R on all of them.
        head: C x V.
        layers: L.
        query_width: H x D.
        key_value_width: K x D.
        bytes_per_number: of weights, keys and values.
    """

    linear: int
    adapter: int
    head: int
    layers: int
    query_width: int
    key_value_width: int
    bytes_per_number: int


def sizes_of(model: Any, *, rank: int = 16) -> ModelSizes:
    """Read the sizes off a model of transformers."""
    import torch

    head = model.get_output_embeddings()
    linears = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelSizes(
        linear=sum(module.weight.numel() for module in linears),
        adapter=rank * sum(sum(module.weight.shape) for module in linears),
        head=head.weight.numel(),
        layers=config.num_hidden_layers,
        query_width=config.num_attention_heads * width,
        key_value_width=config.num_key_value_heads * width,
        bytes_per_number=model.dtype.itemsize,
    )


def update_flops(sizes: ModelSizes, workload: Workload) -> float:
    """Floating-point operations of forward and backward of one update with LoRA.

    Linear layers: 2 P a token forward, 2 P backward (into the input; frozen weights have no
    gradient), and 4 R (inputs + outputs) a token for the adapter's two gradients. Head: 2 C V a
    sampled token each way. Attention: 4 H D a pair of positions that see each other forward, 8
    backward, in every layer.
    """
    prefix = workload.prompt_tokens - 1
    own = workload.conversation_tokens - prefix
    tokens = workload.groups * prefix + workload.rows * own
    pairs = workload.groups * prefix * (prefix + 1) / 2
    pairs += workload.rows * (own * prefix + own * (own + 1) / 2)
    linear = tokens * (4 * sizes.linear + 4 * sizes.adapter)
    head = 4 * sizes.head * workload.sampled_tokens
    attention = 12 * sizes.query_width * pairs * sizes.layers
    return float(linear + head + attention)


def decode_bytes(sizes: ModelSizes, workload: Workload, *, own_tokens: float) -> float:
    """Bytes that one decoding step of all rows has to read: every weight once, the keys and values
    of each group's prompt once, and of each row's own `own_tokens`.
    """
    weights = sizes.linear + sizes.head
    cached = workload.groups * workload.prompt_tokens + workload.rows * own_tokens
    numbers = weights + 2 * sizes.layers * sizes.key_value_width * cached
    return float(numbers * sizes.bytes_per_number)
