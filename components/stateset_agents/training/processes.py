"""What a training process and its fellows do together: the seam of distributed training.

Owns which part of a step is whose, and what the processes tell each other in it. A step's
conversations are shared out by scenario and put together again, so every process has the whole
step's, and computes from them what one process alone would: advantages, token weights, metrics.
The update's rows are shared out and gradients added up. It does not know how processes are started
or talk; `Processes` is one that trains alone, `distributed_group.ProcessGroup` one among several.

Notation: B rows.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch

from stateset_agents.training.batch import TrainingBatch

Item = TypeVar("Item")
Value = TypeVar("Value")
Weights = dict[str, torch.Tensor]


class Processes:
    """A process that trains alone: its share is everything, and what it is told it knows.

    Attributes:
        rank: from 0; the first process runs callbacks, logs and writes checkpoints.
        count: how many train together.
    """

    rank: int = 0
    count: int = 1

    def own(self, count: int) -> range:
        """Which of `count` scenarios this process plays."""
        return range(self.rank, count, self.count)

    async def whole(self, own: Awaitable[list[Item]]) -> list[Item]:
        """Wait for what is made of `own(count)`, and put everyone's together in the order of the
        whole. What one process raises ends the step in all of them.
        """
        return await own

    def gather(self, value: Value) -> list[Value]:
        """Everyone's value, in the order of ranks."""
        return [value]

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Add up each tensor over the processes, in place; shapes and order are everyone's."""

    def agreed(self, value: Value) -> Value:
        """The first process's value, in every process."""
        return value

    def first_acts(
        self, answers: Mapping[str, Callable[[], Any]]
    ) -> AbstractContextManager[object]:
        """Within it the first process acts, and may `ask`; the others answer until it has ended."""
        return nullcontext()

    def first_only(
        self, opened: Callable[[Value], AbstractContextManager[Item]], value: Value
    ) -> AbstractContextManager[Item | None]:
        """`opened(value)` in the first process, and None in the others."""
        return opened(value) if self.rank == 0 else nullcontext()

    def ask(self, question: str, own: Callable[[], Value]) -> list[Value]:
        """Everyone's answer while the first acts, this process's alone otherwise."""
        return [own()]


ALONE = Processes()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor, should each process have a part; all processes ask at the same time."""
    gather: Callable[[], torch.Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def own_rows(batch: TrainingBatch, processes: Processes) -> torch.Tensor:
    """The rows `(b,)` int64 of the batch whose gradient this process computes, ascending.

    Rows that share a prefix stay together, unless there are fewer groups of them than processes.
    The longest go first, each to whoever has least to do, and all processes find the same shares.
    """
    lengths, prefixes = batch.row_lengths.tolist(), batch.shared_prefix_lengths.tolist()
    if processes.count == 1:
        return torch.arange(len(lengths))
    parts = _parts(prefixes, batch.group_index.tolist())
    if len(parts) < processes.count:
        parts = [[row] for row in range(len(lengths))]
    tokens = [
        prefixes[part[0]] + sum(lengths[row] - prefixes[row] for row in part) for part in parts
    ]
    loads = [0] * processes.count
    own: list[int] = []
    for place in sorted(range(len(parts)), key=lambda place: (-tokens[place], place)):
        rank = loads.index(min(loads))
        loads[rank] += tokens[place]
        if rank == processes.rank:
            own += parts[place]
    return torch.tensor(sorted(own), dtype=torch.int64)


def _parts(prefixes: Sequence[int], groups: Sequence[int]) -> list[list[int]]:
    """Rows that share a prefix together, the others alone."""
    parts: dict[tuple[str, int], list[int]] = {}
    for row, (prefix, group) in enumerate(zip(prefixes, groups, strict=True)):
        parts.setdefault(("group", group) if prefix else ("row", row), []).append(row)
    return list(parts.values())
