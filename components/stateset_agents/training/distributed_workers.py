"""The processes that a `DistributedTrainer` starts on its own machine.

Owns how they are started, what they are given, and what is known of one that has ended. It does
not know what they train.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateset_agents.exceptions import ConfigurationError, ProcessLostError

if TYPE_CHECKING:
    from stateset_agents.training.distributed import DistributedTrainer
    from stateset_agents.training.distributed_group import Seat

# Imported once for all of them.
_HEAVY_MODULES = (
    "stateset_agents.training.distributed",
    "stateset_agents.inference.transformers_engine",
)
# How long processes may take to end when training has, before they are ended.
_GRACE_SECONDS = 10.0
_READY, _FAILED, _LOST = "ready", "failed", "lost"


@dataclass(frozen=True, slots=True)
class WorkOrder:
    """What a process is given: the trainer's class, its keywords, and where it resumes."""

    trainer: type[DistributedTrainer]
    keywords: dict[str, Any]
    resume_from: Path | None

    def packed(self) -> bytes:
        """Pickled.

        Raises:
            ConfigurationError: a part cannot travel to another process.
        """
        problems = []
        for name, value in {"trainer": self.trainer, **self.keywords}.items():
            try:
                pickle.dumps(value)
            except Exception as error:  # whatever an object's own pickling provokes: attribute it
                problems.append(
                    f"{name} cannot be sent to another process "
                    f"({type(error).__name__}: {error}): define its classes and functions at the "
                    "top of a module, or start the processes by torchrun or `accelerate launch`"
                )
        if problems:
            raise ConfigurationError(problems)
        return pickle.dumps(self)


class Workers:
    """The processes 1 to count - 1, each with a trainer of its own, ready to join."""

    def __init__(self, first: Seat, payload: bytes) -> None:
        """Start them and wait until each has what it needs; `first` is this process's seat.

        Raises:
            ProcessLostError: one has ended before that.
        """
        available = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context(
            "forkserver" if "forkserver" in available else "spawn"
        )
        if "forkserver" in available:
            context.set_forkserver_preload(list(_HEAVY_MODULES))
        self._processes: list[BaseProcess] = []
        self._reports: list[Connection] = []
        self._found: dict[int, str] = {}
        self._lost: set[int] = set()
        try:
            for rank in range(1, first.count):
                mine, theirs = context.Pipe(duplex=False)
                seat = replace(first, rank=rank, local_rank=rank)
                process = context.Process(
                    target=_work,
                    args=(seat, payload, dict(os.environ), theirs),
                    name=f"training-{rank}",
                )
                process.start()
                theirs.close()
                self._processes.append(process)
                self._reports.append(mine)
            self._wait_until_ready()
        except BaseException:
            self.end()
            raise

    def what_happened(self) -> list[str]:
        """What is known of those that have ended or failed by themselves, a line each."""
        deadline = time.monotonic() + _GRACE_SECONDS
        while not self._found and time.monotonic() < deadline:
            self._read_reports()
            time.sleep(0.05)
            if not any(process.is_alive() for process in self._processes):
                break
        self._read_reports()
        return [self._found[rank] for rank in sorted(self._found)]

    def end(self) -> None:
        """Let them end by themselves, then end them."""
        deadline = time.monotonic() + _GRACE_SECONDS
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        for report in self._reports:
            report.close()

    def _wait_until_ready(self) -> None:
        waiting: list[Any] = list(self._reports)
        while waiting:
            for report in wait(waiting):
                waiting.remove(report)
                rank = 1 + self._reports.index(report)  # type: ignore[arg-type]
                kind, text = _received(report)  # type: ignore[arg-type]
                if kind != _READY:
                    self._processes[rank - 1].join(_GRACE_SECONDS)
                    raise ProcessLostError(
                        f"process {rank} of {1 + len(self._processes)} could not start: "
                        f"{text or self._end_of(rank)}. A script that starts processes keeps its "
                        'own work under `if __name__ == "__main__":`'
                    )

    def _read_reports(self) -> None:
        """Of those that ended because they lost another, nothing is said."""
        total = 1 + len(self._processes)
        for rank, (process, report) in enumerate(
            zip(self._processes, self._reports, strict=True), start=1
        ):
            if rank in self._found:
                continue
            reported = report.poll()
            kind, text = _received(report) if reported else ("", "")
            if kind == _LOST:
                self._lost.add(rank)
            if kind == _FAILED:
                self._found[rank] = f"process {rank} of {total} failed: {text}"
            elif process.exitcode not in (None, 0) and rank not in self._lost:
                self._found[rank] = f"process {rank} of {total} {self._end_of(rank)}"

    def _end_of(self, rank: int) -> str:
        code = self._processes[rank - 1].exitcode
        if code is not None and code < 0:
            return f"was killed by signal {-code} ({signal.Signals(-code).name})"
        return f"ended with exit code {code}"


def _received(report: Connection) -> tuple[str, str]:
    try:
        kind, text = report.recv()
    except EOFError:
        return "", ""
    return kind, text


def _work(seat: Seat, payload: bytes, environment: Mapping[str, str], report: Connection) -> None:
    """The life of a process: take the order, train along, say why it ended."""
    # a fork server keeps the variables of when it was started, maybe for something else
    os.environ.clear()
    os.environ.update(environment)
    try:
        order: WorkOrder = pickle.loads(payload)
        trainer = order.trainer(**order.keywords, _seat=seat)
        report.send((_READY, ""))
        asyncio.run(_train(trainer, order.resume_from))
    except ProcessLostError as error:
        report.send((_LOST, str(error)))
        sys.exit(1)
    except BaseException as error:
        report.send((_FAILED, _told(error)))
        sys.exit(1)


async def _train(trainer: DistributedTrainer, resume_from: Path | None) -> None:
    try:
        await trainer.train(resume_from=resume_from)
    finally:
        await trainer.close()


def _told(error: BaseException) -> str:
    """One line, and where it was raised."""
    frames: Sequence[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
