"""The reward of every side: free to compute, and different within every group."""

from __future__ import annotations

import zlib


def spread_reward(text: str) -> float:
    """A number in [0, 1] that depends on every character."""
    return (zlib.crc32(text.encode()) % 1000) / 999
