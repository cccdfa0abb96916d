"""Attention over slots: what the model's layers call in place of their own.

Owns the products of queries with cached keys and values, for many sequences of different lengths in
one packed row of tokens. It does not know requests; `plan_attention` turns the scheduler's rows
into tensors once a step, and every layer uses them.

The prompt that a group shares lies in a cache of its own, once. Its scores are one product for all
queries of the group, and stand beside each sequence's own scores under one softmax, so the result
is that of attention over the concatenation.

Notation: N packed tokens, R single tokens, K key-value heads, Q query heads for each, D head width,
P prefix tokens, L own tokens, G groups, M members of the largest group.
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
# Slots without a query that a run may bridge: computing some in vain is cheaper than another run.
_BRIDGED_SLOTS = 4


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens of one sequence to compute in a step.

    Attributes:
        slot: where the sequence's own keys and values lie.
        start: own tokens that are computed already.
        count: tokens computed now; they follow those.
        is_prefix: the sequence is a shared prefix, and `slot` one of the shared cache.
        prefix_slot: the shared prefix's slot in the shared cache, or None.
        prefix_tokens: tokens of the prefix; the position of own token i is that plus i.
    """

    slot: int
    start: int
    count: int
    is_prefix: bool = False
    prefix_slot: int | None = None
    prefix_tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Run:
    """Single tokens of sequences in neighbouring slots, computed as one batch.

    `rows` are their packed tokens. `row_of_slot` fills bridged slots and `slot_of_row` leaves
    them out again; both None where there are none.
    """

    rows: slice
    slots: slice
    row_of_slot: Tensor | None
    slot_of_row: Tensor | None


@dataclass(frozen=True, slots=True)
class _Shared:
    """The groups that single tokens belong to, padded to M members each.

    `members` is `(G, M)`, rows; `group` and `place` are `(R,)`, where a row stands in `members`.
    `has_prefix` is `(R, 1, 1, 1)`, 0 for rows that belong to no group; None if all do.
    """

    slots: slice
    members: Tensor
    group: Tensor
    place: Tensor
    has_prefix: Tensor | None


@dataclass(frozen=True, slots=True)
class _Singles:
    """All sequences with one new token. `bias` is `(R, 1, 1, P + L)`, 0 or -inf."""

    slots: Tensor
    offsets: Tensor
    own_tokens: int
    prefix_tokens: int
    runs: tuple[_Run, ...]
    shared: _Shared | None
    bias: Tensor


@dataclass(frozen=True, slots=True)
class _Piece:
    """Several new tokens of one sequence. `bias` is `(count, L)`, causal."""

    rows: slice
    row: Row
    bias: Tensor


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """One step's attention, the same for every layer.

    `positions` is `(N,)`; `order` is the order in which the rows were packed.
    """

    own: SlotCache
    shared: SlotCache
    positions: Tensor
    order: tuple[int, ...]
    singles: _Singles | None
    pieces: tuple[_Piece, ...]


class ShapeProbe:
    """Stands where a plan would, and notes what each layer stores for a token."""

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}


def plan_attention(
    rows: Sequence[Row], own: SlotCache, shared: SlotCache, device: torch.device
) -> AttentionPlan:
    """Pack rows: single tokens by slot first, as one batch, then longer pieces one by one."""
    singles = sorted(
        (i for i, row in enumerate(rows) if row.count == 1 and not row.is_prefix),
        key=lambda i: rows[i].slot,
    )
    chosen = set(singles)
    longer = [i for i in range(len(rows)) if i not in chosen]
    order = (*singles, *longer)
    pieces = []
    packed = len(singles)
    for index in longer:
        row = rows[index]
        end = row.start + row.count
        hidden = torch.arange(end) > torch.arange(row.start, end).unsqueeze(1)
        bias = _bias(hidden, own)
        pieces.append(_Piece(slice(packed, packed + row.count), row, bias))
        packed += row.count
    positions: list[int] = []
    for index in order:
        first = rows[index].prefix_tokens + rows[index].start
        positions.extend(range(first, first + rows[index].count))
    return AttentionPlan(
        own=own,
        shared=shared,
        positions=torch.tensor(positions, device=device),
        order=order,
        singles=_plan_singles([rows[i] for i in singles], own, shared, device),
        pieces=tuple(pieces),
    )


def _plan_singles(
    rows: Sequence[Row], own: SlotCache, shared: SlotCache, device: torch.device
) -> _Singles | None:
    if not rows:
        return None
    own_tokens = _width(max(row.start + 1 for row in rows), own.capacity)
    prefix = max(row.prefix_tokens for row in rows)
    prefix_tokens = _width(prefix, shared.capacity) if prefix else 0
    hidden = torch.cat(
        (
            _beyond([row.prefix_tokens for row in rows], prefix_tokens),
            _beyond([row.start + 1 for row in rows], own_tokens),
        ),
        dim=1,
    )
    bias = _bias(hidden, own)
    runs: list[_Run] = []
    first = 0
    for index in range(1, len(rows) + 1):
        end = index == len(rows)
        if end or rows[index].slot - rows[index - 1].slot > _BRIDGED_SLOTS + 1:
            runs.append(_plan_run(rows[first:index], first, device))
            first = index
    return _Singles(
        slots=torch.tensor([row.slot for row in rows], device=device),
        offsets=torch.tensor([row.start for row in rows], device=device),
        own_tokens=own_tokens,
        prefix_tokens=prefix_tokens,
        runs=tuple(runs),
        shared=_plan_shared(rows, device),
        bias=bias[:, None, None, :],
    )


def _bias(hidden: Tensor, cache: SlotCache) -> Tensor:
    bias = torch.zeros(hidden.shape, dtype=cache.dtype).masked_fill_(hidden, float("-inf"))
    return bias.to(cache.device)


def _width(longest: int, capacity: int) -> int:
    """Whole slots need no copy before a product; a small part of them is cheaper to copy."""
    return capacity if 2 * longest >= capacity else longest


def _beyond(lengths: Sequence[int], width: int) -> Tensor:
    return torch.arange(width) >= torch.tensor(lengths).unsqueeze(1)


def _plan_run(rows: Sequence[Row], packed: int, device: torch.device) -> _Run:
    low, high = rows[0].slot, rows[-1].slot + 1
    row_of_slot = slot_of_row = None
    if high - low != len(rows):
        slot_of_row = torch.tensor([row.slot - low for row in rows], device=device)
        row_of_slot = torch.zeros(high - low, dtype=torch.long, device=device)
        row_of_slot[slot_of_row] = torch.arange(len(rows), device=device)
    return _Run(slice(packed, packed + len(rows)), slice(low, high), row_of_slot, slot_of_row)


def _plan_shared(rows: Sequence[Row], device: torch.device) -> _Shared | None:
    used = [row.prefix_slot for row in rows if row.prefix_slot is not None]
    if not used:
        return None
    low, high = min(used), max(used) + 1
    groups: list[list[int]] = [[] for _ in range(low, high)]
    group, place = [], []
    for index, row in enumerate(rows):
        # A row without a prefix reads some group's numbers; its bias and `has_prefix` undo that.
        if row.prefix_slot is None:
            group.append(0)
            place.append(0)
            continue
        group.append(row.prefix_slot - low)
        place.append(len(groups[row.prefix_slot - low]))
        groups[row.prefix_slot - low].append(index)
    largest = max(len(members) for members in groups)
    padded = [members + [0] * (largest - len(members)) for members in groups]
    return _Shared(
        slots=slice(low, high),
        members=torch.tensor(padded, device=device),
        group=torch.tensor(group, device=device),
        place=torch.tensor(place, device=device),
        has_prefix=None
        if len(used) == len(rows)
        else torch.tensor([row.prefix_slot is not None for row in rows], device=device)[
            :, None, None, None
        ],
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
    heads, count, width = query.shape[1:]
    scale = width**-0.5 if scaling is None else scaling
    kv_heads = key.shape[1]
    queries = (query[0].transpose(0, 1) * scale).view(count, kv_heads, heads // kv_heads, width)
    output = attend(slot_plan, layer, queries, key[0].transpose(0, 1), value[0].transpose(0, 1))
    return output.reshape(1, count, heads, value.shape[3]), None


def attend(
    plan: AttentionPlan, layer: int, queries: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Store new keys and values, then attend to all that their sequences have.

    Args:
        plan: this step's.
        layer: the cache's.
        queries: `(N, K, Q, D)`, scaled.
        keys: `(N, K, D)`.
        values: `(N, K, D)`.

    Returns:
        `(N, K, Q, D)`.
    """
    _write(plan, layer, keys, values)
    outputs = []
    if plan.singles is not None:
        last = len(plan.singles.slots)
        outputs.append(_attend_singles(plan, plan.singles, queries[:last], layer))
    for piece in plan.pieces:
        outputs.append(_attend_piece(plan, piece, queries[piece.rows], layer))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _write(plan: AttentionPlan, layer: int, keys: Tensor, values: Tensor) -> None:
    """Store all before any is read: a group reads its prefix in the pass that computes it."""
    if plan.singles is not None:
        last = len(plan.singles.slots)
        plan.own.write(layer, plan.singles.slots, plan.singles.offsets, keys[:last], values[:last])
    for piece in plan.pieces:
        row, packed = piece.row, piece.rows
        cache = plan.shared if row.is_prefix else plan.own
        cache.write_piece(layer, row.slot, row.start, keys[packed], values[packed])


def _attend_singles(plan: AttentionPlan, singles: _Singles, queries: Tensor, layer: int) -> Tensor:
    """Attention of single tokens, `(R, K, Q, D)` to the same shape."""
    keys, values = plan.own.keys[layer], plan.own.values[layer]
    own, prefix = singles.own_tokens, singles.prefix_tokens
    scores = [
        _leave(run, _fill(run, queries[run.rows]) @ keys[run.slots, :, :own].mT)
        for run in singles.runs
    ]
    if singles.shared is not None:
        shared_keys = plan.shared.keys[layer][singles.shared.slots, :, :prefix]
        grouped = _to_groups(queries, singles.shared) @ shared_keys.mT
        scores.insert(0, _from_groups(grouped, singles.shared, queries.shape[2]))
    if singles.shared is not None and len(singles.runs) > 1:
        scores = [scores[0], torch.cat(scores[1:])]
    joined = torch.cat(scores, dim=0 if singles.shared is None else 3)
    # The bias is 0 or -inf, so adding it rounds nothing; softmax itself computes in float32.
    weights = torch.softmax(joined.add_(singles.bias), dim=-1)
    mine = weights[..., prefix:]
    outputs = [
        _leave(run, _fill(run, mine[run.rows]) @ values[run.slots, :, :own]) for run in singles.runs
    ]
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if singles.shared is not None:
        shared_values = plan.shared.values[layer][singles.shared.slots, :, :prefix]
        grouped = _to_groups(weights[..., :prefix], singles.shared) @ shared_values
        theirs = _from_groups(grouped, singles.shared, queries.shape[2])
        if singles.shared.has_prefix is not None:
            theirs = theirs * singles.shared.has_prefix
        output = output + theirs
    return output


def _fill(run: _Run, tensor: Tensor) -> Tensor:
    return tensor if run.row_of_slot is None else tensor[run.row_of_slot]


def _leave(run: _Run, tensor: Tensor) -> Tensor:
    return tensor if run.slot_of_row is None else tensor[run.slot_of_row]


def _to_groups(tensor: Tensor, shared: _Shared) -> Tensor:
    """`(R, K, Q, X)` to `(G, K, M * Q, X)`: all queries of a group in one product a head."""
    groups, members = shared.members.shape
    gathered = tensor[shared.members].transpose(1, 2)
    return gathered.reshape(groups, tensor.shape[1], members * tensor.shape[2], tensor.shape[3])


def _from_groups(tensor: Tensor, shared: _Shared, queries: int) -> Tensor:
    """`(G, K, M * Q, X)` back to `(R, K, Q, X)`."""
    groups, heads, _, width = tensor.shape
    by_member = tensor.view(groups, heads, -1, queries, width).transpose(1, 2)
    return by_member[shared.group, shared.place]


def _attend_piece(plan: AttentionPlan, piece: _Piece, queries: Tensor, layer: int) -> Tensor:
    """Attention of several tokens of one sequence, `(count, K, Q, D)` to the same shape."""
    row = piece.row
    count, kv_heads, groups, width = queries.shape
    own = row.start + row.count
    cache = plan.shared if row.is_prefix else plan.own
    keys = cache.keys[layer][row.slot, :, :own]
    values = cache.values[layer][row.slot, :, :own]
    by_head = queries.transpose(0, 1).reshape(kv_heads, count * groups, width)
    scores = by_head @ keys.mT
    scores.view(kv_heads, count, groups, own).add_(piece.bias[:, None, :])
    before = row.prefix_tokens
    if row.prefix_slot is not None:
        prefix = by_head @ plan.shared.keys[layer][row.prefix_slot, :, :before].mT
        scores = torch.cat((prefix, scores), dim=-1)
    weights = torch.softmax(scores, dim=-1)
    output = weights[..., before:] @ values
    if row.prefix_slot is not None:
        shared_values = plan.shared.values[layer][row.prefix_slot, :, :before]
        output = output + weights[..., :before] @ shared_values
    return output.view(kv_heads, count, groups, -1).transpose(0, 1)


AttentionInterface.register(ATTENTION_NAME, slot_attention)
