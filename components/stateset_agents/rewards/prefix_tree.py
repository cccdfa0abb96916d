"""Token sequences that share beginnings, packed so that what is shared is computed once.

Owns the packing. Conversations of a group share their prompt, the two answers of a preference pair
share theirs, and every turn of a conversation is the beginning of the next: laid out as a tree, in
one row with a mask by which a token sees its ancestors alone, a transformer gives each of them what
it would have had in a row of its own.

Notation: S sequences, T tokens of a pack (nodes of its tree).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stateset_agents.inference.token_prefix import common_prefix_length

Tokens = Sequence[int]


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """A forest of token sequences, parents before children.

    Attributes:
        token_ids: `(T,)` int64.
        positions: `(T,)` int64, the depth in the tree: the position in every sequence through it.
        parents: `(T,)` int64, -1 at a root.
        last_nodes: `(S,)` int64, where each sequence of the pack ends.
        sequence_indices: S numbers, which of the caller's sequences those are.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    parents: torch.Tensor
    last_nodes: torch.Tensor
    sequence_indices: tuple[int, ...]

    def attention_mask(self) -> torch.Tensor:
        """`(1, 1, T, T)` bool, True where a token (row) sees another (column): itself and its
        ancestors.
        """
        size = len(self.parents)
        visible = torch.zeros(size, size, dtype=torch.bool)
        for node, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                visible[node] = visible[parent]
            visible[node, node] = True
        return visible[None, None]


def pack_sequences(groups: Sequence[Sequence[Tokens]], max_tokens: int) -> list[Pack]:
    """Pack sequences into trees of at most `max_tokens` nodes.

    The sequences of a group (the two of a pair, the turns of a conversation) come into the same
    pack; a group that is larger by itself gets a pack of its own. Groups are sorted by their
    tokens, so that those which begin alike lie together. `sequence_indices` count the sequences
    of all groups in the order given. No sequence may be empty.
    """
    first_index = 0
    ordered = []
    for group in groups:
        ordered.append((tuple(tuple(tokens) for tokens in group), first_index))
        first_index += len(group)
    ordered.sort()
    packs: list[Pack] = []
    tree = _Tree()
    for group, first in ordered:
        if tree.size and tree.size + tree.missing(group) > max_tokens:
            packs.append(tree.to_pack())
            tree = _Tree()
        for offset, tokens in enumerate(group):
            tree.add(tokens, first + offset)
    if tree.size:
        packs.append(tree.to_pack())
    return packs


class _Tree:
    def __init__(self) -> None:
        self._children: dict[tuple[int, int], int] = {}
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._depths: list[int] = []
        self._last_nodes: list[int] = []
        self._indices: list[int] = []

    @property
    def size(self) -> int:
        return len(self._tokens)

    def missing(self, group: Sequence[tuple[int, ...]]) -> int:
        """How many nodes a group would add."""
        total = 0
        for position, tokens in enumerate(group):
            shared = self._shared(tokens)
            for other in group[:position]:
                shared = max(shared, common_prefix_length(tokens, other))
            total += len(tokens) - shared
        return total

    def add(self, tokens: tuple[int, ...], index: int) -> None:
        node = -1
        for depth, token in enumerate(tokens):
            child = self._children.get((node, token))
            if child is None:
                child = len(self._tokens)
                self._children[node, token] = child
                self._tokens.append(token)
                self._parents.append(node)
                self._depths.append(depth)
            node = child
        self._last_nodes.append(node)
        self._indices.append(index)

    def to_pack(self) -> Pack:
        return Pack(
            token_ids=torch.tensor(self._tokens),
            positions=torch.tensor(self._depths),
            parents=torch.tensor(self._parents),
            last_nodes=torch.tensor(self._last_nodes),
            sequence_indices=tuple(self._indices),
        )

    def _shared(self, tokens: tuple[int, ...]) -> int:
        node = -1
        for depth, token in enumerate(tokens):
            child = self._children.get((node, token))
            if child is None:
                return depth
            node = child
        return len(tokens)
