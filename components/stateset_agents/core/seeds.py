"""Seeds made from names, so that a sample's random numbers do not depend on the order of work."""

from __future__ import annotations

import hashlib
import json


def derive_seed(*parts: int | str) -> int:
    """Hash numbers and names into a seed in [0, 2**63).

    The same parts give the same seed on every machine and in every process (BLAKE2b of their JSON
    list; `hash()` would be salted). Different parts give unrelated seeds.
    """
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
