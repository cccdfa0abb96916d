"""How much two token sequences have in common: what a cache, a pack or a group can share."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading tokens `first` and `second` have in common."""
    shortest = min(len(first), len(second))
    # one comparison in C for what is usual: all of the shorter one is shared
    if list(first[:shortest]) == list(second[:shortest]):
        return shortest
    pairs = zip(first, second, strict=False)
    return next(index for index, (one, other) in enumerate(pairs) if one != other)
