"""Keys and values of many conversations, in slots that are allocated once.

Owns the memory: one tensor of keys and one of values a layer, with room for `slots` sequences of
`capacity` tokens. It does not know what is in a slot, nor when to take one; `scheduler.py` does.

Notation: S slots, K key-value heads, D head width, C capacity in tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one attention layer stores for a token."""

    heads: int
    key_width: int
    value_width: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of one token's key and value."""
        return self.heads * (self.key_width + self.value_width) * dtype.itemsize


class SlotCache:
    """The tensors, by layer, `(S, K, C, D)`: a token's key or value is one stretch of memory.

    Keys lying transposed made no product faster, and each new token was then a write to D places.

    Args:
        shapes: what each layer stores, by layer index.
        slots: sequences that fit at first.
        capacity: tokens of each. Products over whole slots need no copy, so it is kept near what
            the longest sequence has, and `resize` is called every few dozen tokens.
        dtype: of the stored numbers, the model's own.
        device: where the model is.
    """

    def __init__(
        self,
        shapes: Mapping[int, LayerShape],
        *,
        slots: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._shapes = dict(shapes)
        self.dtype = dtype
        self.device = device
        self.slots = slots
        self.capacity = capacity
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        for layer, shape in self._shapes.items():
            self.keys[layer], self.values[layer] = self._allocate(shape, slots, capacity)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes in all layers."""
        return sum(shape.bytes_per_token(self.dtype) for shape in self._shapes.values())

    def write(
        self, layer: int, slots: Tensor, offsets: Tensor, keys: Tensor, values: Tensor
    ) -> None:
        """Store the keys and values `(N, K, D)` of N tokens at `(slots, offsets)`, each `(N,)`."""
        self.keys[layer][slots, :, offsets] = keys
        self.values[layer][slots, :, offsets] = values

    def write_piece(self, layer: int, slot: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Store the keys and values `(N, K, D)` of N tokens that follow each other in one slot."""
        stop = start + keys.shape[0]
        self.keys[layer][slot, :, start:stop] = keys.transpose(0, 1)
        self.values[layer][slot, :, start:stop] = values.transpose(0, 1)

    def resize(self, slots: int, capacity: int, kept: Sequence[tuple[int, int, int]]) -> None:
        """Change the number of slots and their capacity.

        Args:
            slots: the new number.
            capacity: the new capacity, in tokens.
            kept: `(old slot, new slot, tokens)` of each sequence to carry over.
        """
        for layer, shape in self._shapes.items():
            keys, values = self._allocate(shape, slots, capacity)
            for old, new, tokens in kept:
                keys[new, :, :tokens] = self.keys[layer][old, :, :tokens]
                values[new, :, :tokens] = self.values[layer][old, :, :tokens]
            self.keys[layer], self.values[layer] = keys, values
        self.slots, self.capacity = slots, capacity

    def _allocate(self, shape: LayerShape, slots: int, capacity: int) -> tuple[Tensor, Tensor]:
        # Zeros, because what is masked is multiplied by 0, and 0 times a stray NaN is NaN.
        keys = (slots, shape.heads, capacity, shape.key_width)
        values = (slots, shape.heads, capacity, shape.value_width)
        if self.device.type != "cpu":
            return (
                torch.zeros(keys, dtype=self.dtype, device=self.device),
                torch.zeros(values, dtype=self.dtype, device=self.device),
            )
        return self._untouched(keys), self._untouched(values)

    def _untouched(self, shape: tuple[int, ...]) -> Tensor:
        # numpy asks for zeroed pages, which take no memory until they are written; torch.zeros
        # writes them all. A slot that is never used costs nothing.
        count = int(np.prod(shape)) * self.dtype.itemsize
        return torch.from_numpy(np.zeros(count, dtype=np.uint8)).view(self.dtype).view(shape)
