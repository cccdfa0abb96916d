"""AdamW's state as named tensors, so that a checkpoint holds no pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stateset_agents.exceptions import CheckpointError


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """`<parameter>.<entry>` for every entry; `names` are the parameters in the optimizer's order.
    Empty before the first step.
    """
    state: dict[int, dict[str, torch.Tensor]] = optimizer.state_dict()["state"]
    return {
        f"{names[index]}.{entry}": value
        for index, entries in state.items()
        for entry, value in entries.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave; the learning rate is set anew by every step.

    Raises:
        CheckpointError: an entry of a parameter that the policy does not have.
    """
    index_of = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition(".")
        if name not in index_of:
            raise CheckpointError(
                f"the checkpoint's optimizer has {name!r}, which this policy does not train"
            )
        state.setdefault(index_of[name], {})[entry] = value
    whole = optimizer.state_dict()
    optimizer.load_state_dict({**whole, "state": state})
