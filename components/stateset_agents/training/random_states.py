"""The process's global random generators: what they begin with, and their states as JSON.

Owns Python's, NumPy's and torch's, which dropout, environments and rewards draw from. It does not
know who draws. What is sampled has seeds of its own (`core.seeds`).
"""

from __future__ import annotations

import base64
import logging
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from stateset_agents.core.seeds import derive_seed

_log = logging.getLogger(__name__)


def seed_of_process(seed: int, rank: int, step: int = 0) -> int:
    """What a process's generators begin with: the run's seed in the first, and one of its own in
    each other, for rows that are shared out are not to lose the same places to dropout.
    """
    return seed if rank == 0 else derive_seed(seed, "process", rank, step)


def seed_generators(seed: int) -> None:
    """Let all three begin anew."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, as JSON."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, [int(key) for key in keys], position, has_gauss, cached],
        "torch": _encode(torch.get_rng_state()),
        "cuda": [_encode(state) for state in torch.cuda.get_rng_state_all()],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Put the generators back to where `random_states` saw them.

    GPUs are told apart by their number. One that was not there then keeps its state, the states of
    those that are not here now are left out, and a warning says so: what dropout draws on a GPU is
    then not what it would have drawn.
    """
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_decode(states["torch"]))
    saved, here = states["cuda"], torch.cuda.device_count()
    if len(saved) != here:
        _log.warning(
            "the random states of %d GPUs were saved and this machine shows %d: the first %d go on "
            "from theirs; what dropout draws on a GPU is not what it would have drawn there",
            *(len(saved), here, min(len(saved), here)),
        )
    for device, state in enumerate(saved[:here]):
        torch.cuda.set_rng_state(_decode(state), device)


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
