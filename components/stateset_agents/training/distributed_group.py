"""Processes that train together over torch.distributed, joined through Accelerate.

Owns how they join, what their collectives are, and the error that they raise when one of them is
gone. It does not know what is trained, nor how the processes were started.

Three groups: tensors go over Accelerate's own (NCCL between GPUs, gloo between processors), objects
over two of gloo. Conversations have a group to themselves, because with `off_policy_steps` they are
exchanged while an update runs in another thread.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from stateset_agents.core.trajectory import TrajectoryGroup
from stateset_agents.exceptions import ConfigurationError, ProcessLostError, TrainingError
from stateset_agents.training.processes import Processes

Item = TypeVar("Item")
Value = TypeVar("Value")

# Gradients travel in pieces of at most so many bytes.
_PIECE_BYTES = 2**26
_GO_ON = "go on"
_LOOPBACK = "lo"


@dataclass(frozen=True, slots=True)
class Seat:
    """The place of one process among those that train together.

    Attributes:
        rank: from 0, among all.
        count: of all.
        local_rank: from 0, among those on this machine; the GPU's number.
        port: of the store at which processes of one machine meet; None where a launcher has
            arranged that (torchrun, `accelerate launch`, MPI).
        cpu: compute on processors, whatever else there is.
        timeout_seconds: how long one waits for the others before it gives up.
    """

    rank: int
    count: int
    local_rank: int
    port: int | None
    cpu: bool
    timeout_seconds: float


class ProcessGroup(Processes):
    """One process of several. `joined` is the context in which they can talk.

    Every collective raises `ProcessLostError` where another process is gone, or has not answered
    for `timeout_seconds`.
    """

    def __init__(self, seat: Seat) -> None:
        self.rank = seat.rank
        self.count = seat.count
        self.seat = seat
        # told of what the others have played
        self.on_groups: Callable[[Sequence[TrajectoryGroup]], None] = lambda _: None
        self._store: Any = None
        self._objects: Any = None
        self._rollouts: Any = None
        self._acting = False

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Join the others, and leave them at the end, whatever it is.

        What Accelerate and the environment variables said before is put back: a process that had
        trained alone may do so again.
        """
        with _accelerate_of_its_own(self.seat):
            try:
                with self._saying_who_is_gone():
                    self._join()
                yield
            finally:
                self._objects = self._rollouts = None
                if dist.is_initialized():
                    dist.destroy_process_group()

    @property
    def is_joined(self) -> bool:
        """True while the others can be talked to."""
        return self._objects is not None

    def serve(self) -> None:
        """Open the store at which processes of this machine meet; `seat` then has its port."""
        self._store = dist.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", 0, self.count, is_master=True, wait_for_workers=False
        )
        self.seat = replace(self.seat, port=self._store.port)

    def _join(self) -> None:
        from accelerate import PartialState

        seat, timeout = self.seat, timedelta(seconds=self.seat.timeout_seconds)
        if seat.port is not None:
            store = self._store or dist.TCPStore(  # type: ignore[attr-defined]
                "127.0.0.1", seat.port, seat.count, is_master=False, timeout=timeout
            )
            dist.init_process_group(
                "gloo" if seat.cpu else "nccl",
                store=store,
                rank=seat.rank,
                world_size=seat.count,
                timeout=timeout,
            )
            state = PartialState(cpu=seat.cpu)
        else:
            state = PartialState(cpu=seat.cpu, timeout=timeout)
        if (state.process_index, state.num_processes) != (seat.rank, seat.count):
            raise ConfigurationError(
                f"Accelerate counts this process as {state.process_index} of "
                f"{state.num_processes}, the launcher as {seat.rank} of {seat.count}: make no "
                "Accelerator before the DistributedTrainer trains"
            )
        self._objects = dist.new_group(backend="gloo", timeout=timeout)
        self._rollouts = dist.new_group(backend="gloo", timeout=timeout)

    # --- what a step asks of it ------------------------------------------------------------------

    async def whole(self, own: Awaitable[list[Item]]) -> list[Item]:
        """See `Processes.whole`; an exception of any process is raised in all."""
        result: list[Item] | Exception
        try:
            result = await own
        except Exception as error:
            result = error
        everyone = self._gather(_portable(result), self._rollouts)
        if isinstance(result, Exception):
            raise result
        for rank, theirs in enumerate(everyone):
            if isinstance(theirs, Exception):
                theirs.add_note(f"raised in process {rank} of {self.count}")
                raise theirs
            if rank != self.rank:
                self.on_groups(theirs)
        everyone[self.rank] = result
        parts = [iter(part) for part in everyone]
        total = sum(len(part) for part in everyone)
        return [next(parts[place % self.count]) for place in range(total)]

    def gather(self, value: Value) -> list[Value]:
        """See `Processes.gather`."""
        return self._gather(value, self._objects)

    @torch.no_grad()
    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """See `Processes.add_up`. Small tensors travel together."""
        with self._saying_who_is_gone():
            for piece in _pieces(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in piece])
                dist.all_reduce(flat)
                for tensor, total in zip(
                    piece, flat.split([tensor.numel() for tensor in piece]), strict=True
                ):
                    tensor.copy_(total.view_as(tensor))

    @torch.no_grad()
    def follow_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Take over the first process's values, in place: what was drawn at random is one draw."""
        with self._saying_who_is_gone():
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def agreed(self, value: Value) -> Value:
        """See `Processes.agreed`."""
        told: Value = self._told_by_first(value)
        return told

    def first_acts(
        self, answers: Mapping[str, Callable[[], Any]]
    ) -> AbstractContextManager[object]:
        """See `Processes.first_acts`. If the first raises within it, the others end as well."""
        return self._first_acts(answers)

    @contextmanager
    def _first_acts(self, answers: Mapping[str, Callable[[], Any]]) -> Iterator[None]:
        self._acting = self.rank == 0
        try:
            yield
        finally:
            self._acting = False
        while (order := self._told_by_first(_GO_ON)) != _GO_ON:
            self.gather(answers[order]())

    def ask(self, question: str, own: Callable[[], Value]) -> list[Value]:
        """See `Processes.ask`."""
        if not self._acting:
            return [own()]
        self._told_by_first(question)
        return self.gather(own())

    # --- inside ----------------------------------------------------------------------------------

    def _gather(self, value: Any, group: Any) -> list[Any]:
        everyone: list[Any] = [None] * self.count
        with self._saying_who_is_gone():
            dist.all_gather_object(everyone, value, group=group)
        return everyone

    def _told_by_first(self, value: Any) -> Any:
        told = [value]
        with self._saying_who_is_gone():
            dist.broadcast_object_list(told, src=0, group=self._objects)
        return told[0]

    @contextmanager
    def _saying_who_is_gone(self) -> Iterator[None]:
        """Gloo and NCCL raise plain RuntimeErrors."""
        try:
            yield
        except RuntimeError as error:
            raise ProcessLostError(
                f"process {self.rank} of {self.count} has lost the others ({_first_line(error)}): "
                "one of them has ended, or has not answered for "
                f"{self.seat.timeout_seconds:g} seconds. Checkpoints that were written are whole: "
                "start again with resume_from, with as many processes as you like"
            ) from error


@contextmanager
def _accelerate_of_its_own(seat: Seat) -> Iterator[None]:
    """Accelerate keeps what it knows of processes once and for all; here for as long as the group
    lives. Where a launcher has arranged everything there is nothing to set.
    """
    from accelerate.state import AcceleratorState, PartialState

    if seat.port is None:
        yield
        return
    shared = [PartialState._shared_state, AcceleratorState._shared_state]
    kept = [dict(state) for state in shared]
    environment, threads = dict(os.environ), torch.get_num_threads()
    each = max(1, min(threads, (os.cpu_count() or 1) // seat.count)) if seat.cpu else threads
    own = {
        "RANK": str(seat.rank),
        "WORLD_SIZE": str(seat.count),
        "LOCAL_RANK": str(seat.local_rank),
        "LOCAL_WORLD_SIZE": str(seat.count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(seat.port),
        "OMP_NUM_THREADS": str(each),
    }
    if Path(f"/sys/class/net/{_LOOPBACK}").exists():
        own.setdefault("GLOO_SOCKET_IFNAME", environment.get("GLOO_SOCKET_IFNAME", _LOOPBACK))
    for state in shared:
        state.clear()
    os.environ.update(own)
    torch.set_num_threads(each)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for name in own:
            if name in environment:
                os.environ[name] = environment[name]
            else:
                os.environ.pop(name, None)
        for state, before in zip(shared, kept, strict=True):
            state.clear()
            state.update(before)


def _pieces(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Neighbours of one type together, up to a size; a larger tensor alone."""
    piece: list[torch.Tensor] = []
    for tensor in tensors:
        size = sum(one.numel() for one in piece) + tensor.numel()
        if piece and (
            tensor.dtype != piece[0].dtype or size * tensor.element_size() > _PIECE_BYTES
        ):
            yield piece
            piece = []
        piece.append(tensor)
    if piece:
        yield piece


def _portable(result: Any) -> Any:
    """An exception that cannot travel is told by its text."""
    if not isinstance(result, Exception):
        return result
    import pickle

    try:
        pickle.loads(pickle.dumps(result))
    except Exception:
        return TrainingError(f"{type(result).__name__}: {result}")
    return result


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
