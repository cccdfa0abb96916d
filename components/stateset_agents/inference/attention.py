"""Attention over slots: what the model's layers call in place of their own.

Owns the products of queries with cached keys and values, for many sequences of different lengths in
one packed row of tokens. It does not know requests; `plan_attention` turns the scheduler's rows
into tensors once a step, and every layer uses them.

The prompt that a group shares lies in one slot. Its scores are one product for all queries of the
group and stand beside each sequence's own scores under one softmax, so the result is that of
attention over the concatenation.

Notation: N packed tokens, R sequences of a run, K key-value heads, Q query heads for each, D head
width, P prefix tokens, L own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from stateset_agents.exceptions import EngineError
from stateset_agents.inference.slot_cache import LayerShape, SlotCache

ATTENTION_NAME = "stateset_slots"
# Other models hand their extras to attention by these names; none of them is computed here.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")
# Slots without a query that a run may bridge: computing one in vain is cheaper than another run.
_BRIDGED_SLOTS = 2


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens of one sequence to compute in a step.

    Attributes:
        slot: where the sequence's own keys and values lie.
        start: own tokens that are computed already.
        count: tokens computed now; they follow those.
        prefix_slot: the slot of the shared prefix, or None.
        prefix_tokens: P, tokens of the prefix; the position of own token i is P + i.
    """

    slot: int
    start: int
    count: int
    prefix_slot: int | None = None
    prefix_tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Shared:
    """A prefix and the sequences of a run that have it."""

    members: slice | Tensor
    slot: int
    tokens: int


@dataclass(frozen=True, slots=True)
class _Run:
    """Sequences in neighbouring slots with one new token each, computed as one batch.

    `rows` are their packed tokens. `row_of_slot` fills bridged slots, and `slot_of_row` leaves
    them out again; both None where there are none. `bias` is `(R, 1, 1, P + L)`, 0 or -inf.
    """

    rows: slice
    slots: slice
    row_of_slot: Tensor | None
    slot_of_row: Tensor | None
    own_tokens: int
    prefix_tokens: int
    shared: tuple[_Shared, ...]
    bias: Tensor


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Several new tokens of one sequence. `bias` is `(count, L)`, causal."""

    rows: slice
    slot: int
    own_tokens: int
    prefix_slot: int | None
    prefix_tokens: int
    bias: Tensor


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """One step's attention, the same for every layer; `order` is the packed order of the rows."""

    cache: SlotCache
    slots: Tensor
    offsets: Tensor
    positions: Tensor
    order: tuple[int, ...]
    runs: tuple[_Run, ...]
    chunks: tuple[_Chunk, ...]


class ShapeProbe:
    """Stands where a plan would, and notes what each layer stores for a token."""

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}


def plan_attention(rows: Sequence[Row], cache: SlotCache, device: torch.device) -> AttentionPlan:
    """Arrange rows into batches: single tokens by slot first, then longer pieces one by one."""
    singles = sorted(
        (index for index, row in enumerate(rows) if row.count == 1),
        key=lambda index: rows[index].slot,
    )
    longer = [index for index, row in enumerate(rows) if row.count > 1]
    order = (*singles, *longer)
    runs = _plan_runs([rows[index] for index in singles], device)
    chunks = []
    packed = len(singles)
    for index in longer:
        chunks.append(_plan_chunk(rows[index], packed, device))
        packed += rows[index].count
    slots: list[int] = []
    offsets: list[int] = []
    positions: list[int] = []
    for index in order:
        row = rows[index]
        slots.extend([row.slot] * row.count)
        offsets.extend(range(row.start, row.start + row.count))
        first = row.prefix_tokens + row.start
        positions.extend(range(first, first + row.count))
    return AttentionPlan(
        cache=cache,
        slots=torch.tensor(slots, device=device),
        offsets=torch.tensor(offsets, device=device),
        positions=torch.tensor(positions, device=device),
        order=order,
        runs=runs,
        chunks=tuple(chunks),
    )


def _plan_runs(rows: Sequence[Row], device: torch.device) -> tuple[_Run, ...]:
    runs: list[_Run] = []
    first = 0
    for index in range(1, len(rows) + 1):
        apart = index == len(rows) or rows[index].slot - rows[index - 1].slot > _BRIDGED_SLOTS + 1
        if apart:
            runs.append(_plan_run(rows[first:index], first, device))
            first = index
    return tuple(runs)


def _plan_run(rows: Sequence[Row], packed: int, device: torch.device) -> _Run:
    low, high = rows[0].slot, rows[-1].slot + 1
    width = high - low
    own = max(row.start + 1 for row in rows)
    prefix = max(row.prefix_tokens for row in rows)
    # A bridged slot keeps its first own score, so that its softmax, dropped later, is finite.
    own_lengths = [1] * width
    prefix_lengths = [0] * width
    members: dict[int, list[int]] = {}
    for row in rows:
        own_lengths[row.slot - low] = row.start + 1
        prefix_lengths[row.slot - low] = row.prefix_tokens
        if row.prefix_slot is not None:
            members.setdefault(row.prefix_slot, []).append(row.slot - low)
    hidden = torch.cat(
        (
            torch.arange(prefix) >= torch.tensor(prefix_lengths).unsqueeze(1),
            torch.arange(own) >= torch.tensor(own_lengths).unsqueeze(1),
        ),
        dim=1,
    )
    bias = torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf")).to(device)
    row_of_slot = slot_of_row = None
    if width != len(rows):
        slot_of_row = torch.tensor([row.slot - low for row in rows], device=device)
        row_of_slot = torch.zeros(width, dtype=torch.long, device=device)
        row_of_slot[slot_of_row] = torch.arange(len(rows), device=device)
    lengths = {row.prefix_slot: row.prefix_tokens for row in rows}
    return _Run(
        rows=slice(packed, packed + len(rows)),
        slots=slice(low, high),
        row_of_slot=row_of_slot,
        slot_of_row=slot_of_row,
        own_tokens=own,
        prefix_tokens=prefix,
        shared=tuple(
            _Shared(_as_index(inside, device), slot, lengths[slot])
            for slot, inside in members.items()
        ),
        bias=bias[:, None, None, :],
    )


def _as_index(places: list[int], device: torch.device) -> slice | Tensor:
    if places[-1] - places[0] + 1 == len(places):
        return slice(places[0], places[-1] + 1)
    return torch.tensor(places, device=device)


def _plan_chunk(row: Row, packed: int, device: torch.device) -> _Chunk:
    own = row.start + row.count
    hidden = torch.arange(own) > torch.arange(row.start, own).unsqueeze(1)
    return _Chunk(
        rows=slice(packed, packed + row.count),
        slot=row.slot,
        own_tokens=own,
        prefix_slot=row.prefix_slot,
        prefix_tokens=row.prefix_tokens,
        bias=torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf")).to(device),
    )


def slot_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    slot_plan: AttentionPlan | ShapeProbe | None = None,
    **extras: Any,
) -> tuple[Tensor, None]:
    """Store new keys and values, then attend to all that their sequences have.

    Args:
        module: the attention layer; its `layer_idx` names the cache's layer.
        query: `(1, K * Q, N, D)`.
        key: `(1, K, N, D)`.
        value: `(1, K, N, D)`.
        attention_mask: unused; the plan knows what each token may see.
        scaling: of the scores; None means one over the root of D.
        slot_plan: this step's plan, passed through the model's keyword arguments.
        **extras: what other attention functions take.

    Returns:
        `(1, N, K * Q, D)` and, in place of weights, None.

    Raises:
        EngineError: the model asks for a kind of attention that is not computed here.
    """
    asked = [name for name in _UNSUPPORTED if extras.get(name) is not None]
    if asked or slot_plan is None:
        raise EngineError(
            f"{type(module).__name__} asks attention for {', '.join(asked)}, which this engine "
            "does not compute. Use the vllm engine for this model."
            if asked
            else f"{type(module).__name__} does not pass keyword arguments on to attention, so "
            "this engine cannot serve it. Use the vllm engine for this model."
        )
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if isinstance(slot_plan, ShapeProbe):
        slot_plan.shapes[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        return value.repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(1, 2), None
    cache = slot_plan.cache
    cache.write(
        layer,
        slot_plan.slots,
        slot_plan.offsets,
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
    )
    heads, count, width = query.shape[1:]
    scale = width**-0.5 if scaling is None else scaling
    kv_heads = key.shape[1]
    queries = (query[0].transpose(0, 1) * scale).view(count, kv_heads, heads // kv_heads, width)
    output = queries.new_empty((*queries.shape[:3], value.shape[3]))
    for run in slot_plan.runs:
        output[run.rows] = _attend_run(run, queries[run.rows], cache, layer)
    for chunk in slot_plan.chunks:
        output[chunk.rows] = _attend_chunk(chunk, queries[chunk.rows], cache, layer)
    return output.view(1, count, heads, value.shape[3]), None


def _attend_run(run: _Run, queries: Tensor, cache: SlotCache, layer: int) -> Tensor:
    """Attention of single tokens, `(R, K, Q, D)` to the same shape."""
    if run.row_of_slot is not None:
        queries = queries[run.row_of_slot]
    keys, values = cache.keys[layer], cache.values[layer]
    prefix, own = run.prefix_tokens, run.own_tokens
    scores = run.bias.expand(-1, *queries.shape[1:3], -1).contiguous()
    scores[..., prefix:] += queries @ keys[run.slots, :, :, :own]
    for shared in run.shared:
        mine = queries[shared.members]
        product = _by_head(mine) @ keys[shared.slot, :, :, : shared.tokens]
        scores[shared.members, :, :, : shared.tokens] += _by_sequence(product, len(mine))
    weights = torch.softmax(scores, dim=-1).to(queries.dtype)
    output = weights[..., prefix:] @ values[run.slots, :, :own]
    for shared in run.shared:
        mine = weights[shared.members, :, :, : shared.tokens]
        product = _by_head(mine) @ values[shared.slot, :, : shared.tokens]
        output[shared.members] += _by_sequence(product, len(mine))
    return output if run.slot_of_row is None else output[run.slot_of_row]


def _by_head(tensor: Tensor) -> Tensor:
    """`(R, K, Q, X)` to `(K, R * Q, X)`: all queries of a group in one product for each head."""
    return tensor.transpose(0, 1).reshape(tensor.shape[1], -1, tensor.shape[3])


def _by_sequence(tensor: Tensor, sequences: int) -> Tensor:
    """`(K, R * Q, X)` back to `(R, K, Q, X)`."""
    return tensor.view(tensor.shape[0], sequences, -1, tensor.shape[2]).transpose(0, 1)


def _attend_chunk(chunk: _Chunk, queries: Tensor, cache: SlotCache, layer: int) -> Tensor:
    """Attention of several tokens of one sequence, `(count, K, Q, D)` to the same shape."""
    keys, values = cache.keys[layer], cache.values[layer]
    by_head = _by_head(queries)
    own = by_head @ keys[chunk.slot, :, :, : chunk.own_tokens]
    count, kv_heads, groups, _ = queries.shape
    scores = own.view(kv_heads, count, groups, -1) + chunk.bias[:, None, :]
    scores = scores.view(kv_heads, count * groups, -1)
    if chunk.prefix_slot is None:
        weights = torch.softmax(scores, dim=-1).to(queries.dtype)
        return _by_sequence(weights @ values[chunk.slot, :, : chunk.own_tokens], count)
    before = chunk.prefix_tokens
    prefix = by_head @ keys[chunk.prefix_slot, :, :, :before]
    weights = torch.softmax(torch.cat((prefix.float(), scores), dim=-1), dim=-1)
    weights = weights.to(queries.dtype)
    output = weights[..., before:] @ values[chunk.slot, :, : chunk.own_tokens]
    output += weights[..., :before] @ values[chunk.prefix_slot, :, :before]
    return _by_sequence(output, count)


AttentionInterface.register(ATTENTION_NAME, slot_attention)
