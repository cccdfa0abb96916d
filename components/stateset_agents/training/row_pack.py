"""A micro-batch's rows as one sequence without padding: their shared prefix once, then each row's
own tokens.

Owns the layout, and attention over it: a token sees the prefix and what precedes it in its own row.
Everything else in a transformer works on each token by itself and needs to know nothing of it, so
a layer's matrix products are as large as the micro-batch and no position is computed twice.

Scores are computed by block of queries with plain products in the model's dtype. In bfloat16 on a
processor these cost less than half of torch's fused attention in the forward pass and about a
quarter in the backward pass. What the backward pass needs of them is computed again there: kept,
they would grow with the square of a row's length.

Notation: N packed tokens, S sampled tokens, P prefix tokens, K key-value heads, Q query heads for
each, T tokens of a block, L keys that a block sees, E head width.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from stateset_agents.exceptions import TrainingError
from stateset_agents.training.batch import TrainingBatch

ATTENTION_NAME = "stateset_row_pack"
# What some models hand to attention and is not computed here.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")
# Queries whose scores are alive at once; a block sees no keys beyond its own last token.
_BLOCK_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring queries `start:end` of the row whose own tokens are `row_start:row_end`.

    `sees_prefix` is False for the prefix itself and where there is none.
    """

    start: int
    end: int
    row_start: int
    row_end: int
    sees_prefix: bool


@dataclass(frozen=True, slots=True, eq=False)
class RowPack:
    """A packed micro-batch.

    Attributes:
        token_ids: `(N,)` int64.
        positions: `(N,)` int64, of each token in its row.
        predicting: `(S,)` int64, where the states lie that predict the sampled tokens, row by row.
        prefix_tokens: P.
        blocks: all N queries, in order.
    """

    token_ids: Tensor
    positions: Tensor
    predicting: Tensor
    prefix_tokens: int
    blocks: tuple[Block, ...]


def pack_rows(batch: TrainingBatch, prefix_tokens: int) -> RowPack:
    """Pack a (micro-)batch whose rows all begin with the same `prefix_tokens` tokens.

    A row ends before its last sampled token: nothing is predicted from there on.
    """
    device = batch.token_ids.device
    every = torch.arange(batch.token_ids.shape[1], device=device)
    ids, positions, predicting, lengths = [], [], [], []
    if prefix_tokens:
        ids.append(batch.token_ids[0, :prefix_tokens])
        positions.append(every[:prefix_tokens])
        lengths.append(prefix_tokens)
    packed = prefix_tokens
    for tokens, sampled in zip(batch.token_ids, batch.loss_mask, strict=True):
        states = sampled.nonzero().squeeze(1) - 1
        if not len(states):
            continue
        end = int(states[-1]) + 1
        ids.append(tokens[prefix_tokens:end])
        positions.append(every[prefix_tokens:end])
        predicting.append(states - prefix_tokens + packed)
        lengths.append(end - prefix_tokens)
        packed += end - prefix_tokens
    return RowPack(
        token_ids=torch.cat(ids) if ids else every[:0],
        positions=torch.cat(positions) if positions else every[:0],
        predicting=torch.cat(predicting) if predicting else every[:0],
        prefix_tokens=prefix_tokens,
        blocks=tuple(_blocks(lengths, prefix_tokens)),
    )


def _blocks(lengths: Sequence[int], prefix_tokens: int) -> Iterator[Block]:
    first = 0
    for length in lengths:
        sees_prefix = prefix_tokens > 0 and first > 0
        last = first + length
        for start in range(first, last, _BLOCK_TOKENS):
            yield Block(start, min(start + _BLOCK_TOKENS, last), first, last, sees_prefix)
        first = last


class PackAttention(torch.autograd.Function):
    """softmax(q k^T) v over a pack, differentiable in q, k and v (Vaswani et al. 2017, 1)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, pack: RowPack) -> Tensor:
        """`query` (K * Q, N, E), scaled; `key`, `value` (K, N, E); the result is (N, K * Q, E)."""
        ctx.save_for_backward(query, key, value)
        ctx.pack = pack
        output = query.new_empty(query.shape[1], query.shape[0], value.shape[2])
        for block, keys, values in _seen(pack, key, value):
            queries = _by_key_head(query[:, block.start : block.end], len(key))
            _put(output, block, torch.bmm(_weights(queries, keys, block), values))
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v. Those of keys add up in float32: every row sees the prefix."""
        query, key, value = ctx.saved_tensors
        pack: RowPack = ctx.pack
        grad_query = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
        wide = torch.promote_types(key.dtype, torch.float32)
        grad_key, grad_value = (
            torch.zeros_like(key, dtype=wide),
            torch.zeros_like(value, dtype=wide),
        )
        by_head = grad.transpose(0, 1)
        for block, keys, values in _seen(pack, key, value):
            queries = _by_key_head(query[:, block.start : block.end], len(key))
            grads = _by_key_head(by_head[:, block.start : block.end], len(key))
            weights = _weights(queries, keys, block)
            slope = torch.ops.aten._softmax_backward_data(
                torch.bmm(grads, values.transpose(1, 2)), weights, -1, weights.dtype
            )
            _put(grad_query, block, torch.bmm(slope, keys))
            _add(grad_key, block, pack, torch.bmm(slope.transpose(1, 2), queries))
            _add(grad_value, block, pack, torch.bmm(weights.transpose(1, 2), grads))
        return grad_query.transpose(0, 1), grad_key.to(key.dtype), grad_value.to(value.dtype), None


def _seen(pack: RowPack, key: Tensor, value: Tensor) -> Iterator[tuple[Block, Tensor, Tensor]]:
    """Each block with the keys and values that it sees, `(K, L, E)`, its own last."""
    keys, values, row_start = key, value, -1
    for block in pack.blocks:
        if block.row_start != row_start:
            keys, values = (_row(pack, block, part) for part in (key, value))
            row_start = block.row_start
        seen = block.end - row_start + pack.prefix_tokens * block.sees_prefix
        yield block, keys[:, :seen], values[:, :seen]


def _row(pack: RowPack, block: Block, part: Tensor) -> Tensor:
    """What the last token of the block's row sees of `part` (K, N, E)."""
    own = part[:, block.row_start : block.row_end]
    if block.sees_prefix:
        return torch.cat((part[:, : pack.prefix_tokens], own), dim=1)
    return own.contiguous()


def _weights(queries: Tensor, keys: Tensor, block: Block) -> Tensor:
    """`(K, Q * T, E)` and `(K, L, E)` to `(K, Q * T, L)`, causal in the block's own tokens."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    count = block.end - block.start
    later = torch.ones(count, count, dtype=torch.bool, device=scores.device).triu_(1)
    by_query = scores.view(len(scores), -1, count, scores.shape[2])
    by_query[..., -count:].masked_fill_(later, float("-inf"))
    return torch.softmax(scores, dim=-1)


def _by_key_head(part: Tensor, key_heads: int) -> Tensor:
    """`(K * Q, T, E)` to `(K, Q * T, E)`."""
    return part.reshape(key_heads, -1, part.shape[2])


def _put(target: Tensor, block: Block, part: Tensor) -> None:
    """Write `(K, Q * T, E)` into `target` (N, K * Q, E)."""
    count = block.end - block.start
    by_head = part.view(target.shape[1], count, target.shape[2])
    target[block.start : block.end] = by_head.transpose(0, 1)


def _add(target: Tensor, block: Block, pack: RowPack, part: Tensor) -> None:
    """Add `(K, L, E)` to the keys of `target` (K, N, E) that the block saw."""
    if block.sees_prefix:
        target[:, : pack.prefix_tokens] += part[:, : pack.prefix_tokens]
        part = part[:, pack.prefix_tokens :]
    target[:, block.row_start : block.end] += part


@dataclass(slots=True)
class PackProbe:
    """Stands where a pack would, and notes what a model asks of attention.

    Attributes:
        layers: calls of attention.
        unsupported: what was asked for and is not computed here.
        window: the most tokens that a token sees, itself included, in any layer. Rows no longer
            than that never notice.
    """

    layers: int = 0
    unsupported: set[str] = field(default_factory=set)
    window: int = sys.maxsize


def pack_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    row_pack: RowPack | PackProbe | None = None,
    **extras: Any,
) -> tuple[Tensor, None]:
    """What a transformers model calls as its attention within `packed_attention`.

    Args:
        module: the attention layer.
        query: `(1, K * Q, N, E)`.
        key: `(1, K, N, E)`.
        value: `(1, K, N, E)`.
        attention_mask: unused; the pack knows what each token may see.
        scaling: of the scores; None means one over the root of E.
        row_pack: passed through the model's keyword arguments.
        **extras: what other attention functions take.

    Returns:
        `(1, N, K * Q, E)` and, in place of weights, None.

    Raises:
        TrainingError: the model does not pass `row_pack` on, which `PackProbe` tells beforehand.
    """
    if isinstance(row_pack, PackProbe):
        row_pack.layers += 1
        row_pack.unsupported |= {name for name in _UNSUPPORTED if extras.get(name) is not None}
        row_pack.window = min(row_pack.window, extras.get("sliding_window") or sys.maxsize)
    if not isinstance(row_pack, RowPack):
        if row_pack is None:
            raise TrainingError(f"{type(module).__name__} does not pass keyword arguments on")
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    result: Tensor = PackAttention.apply(query[0] * scale, key[0], value[0], row_pack)
    return result[None], None


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Within it a transformers model's layers call `pack_attention`."""
    before = model.config._attn_implementation
    try:
        model.config._attn_implementation = ATTENTION_NAME
        yield
    finally:
        model.config._attn_implementation = before


AttentionInterface.register(ATTENTION_NAME, pack_attention)
