"""One retraining at a time in a checkout, and one DVC stage at a time in a retraining.

Owns both locks and how DVC's errors are told. It does not know Prefect.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stateset_agents.exceptions import PipelineError
from tasks import history, paths

KILLED_BY_SIGNAL = 128  # shells report a child that a signal ended as 128 + its number


class StepFailedError(PipelineError):
    """A step ended with an error. It has shown it on its own standard error already.

    Attributes:
        step: the step's name.
        by_itself: the step found the error and said so; it would find it again.
    """

    def __init__(self, step: str, message: str, *, by_itself: bool) -> None:
        super().__init__(f"step {step}: {message}")
        self.step = step
        self.by_itself = by_itself


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What became of one step: `ran` is False when DVC found its outputs up to date, or the same
    work in its cache.
    """

    step: str
    ran: bool
    seconds: float


@contextlib.contextmanager
def hold_checkout(root: Path) -> Iterator[None]:
    """Be the only retraining in this checkout.

    The lock is the operating system's, on a file: it ends with the process that holds it.

    Raises:
        PipelineError: another process holds it; the message says which and since when.
    """
    path = root / paths.LOCKS / "retrain.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise PipelineError(
                f"a retraining runs in this checkout already: {holder}. "
                "Wait until it has ended, or end it; nothing was started or changed"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def reproduce(root: Path, step: str, *, force: bool = False) -> StepOutcome:
    """Bring one stage of `dvc.yaml` up to date, as `dvc repro --single-item STEP` does.

    Raises:
        StepFailedError: the step ran and failed.
        PipelineError: it could not start: DVC is busy in this checkout, an input is missing.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    # the steps speak for themselves; importing DVC has set its level to INFO
    logging.getLogger("dvc").setLevel(logging.getLogger("flows").getEffectiveLevel() + 10)
    require_idle_dvc(root)
    started = time.time()
    try:
        with Repo(str(root)) as repository:
            repository.reproduce(targets=[step], single_item=True, force=force)
    except LockError as error:
        raise PipelineError(f"step {step} cannot start: {error}") from error
    except DvcException as error:
        _bring_back_outputs(root, step)
        raise _explain(root, step, started, error) from error
    except BaseException:
        _end_children()  # a time limit or Ctrl-C: DVC leaves the step running
        raise
    ran = history.last(root, step, since=started)
    return StepOutcome(step, ran is not None, time.time() - started)


def _bring_back_outputs(root: Path, step: str) -> None:
    # DVC deletes a stage's outputs before it runs it. What a failed step did not write anew comes
    # out of the cache again, where there is any; what it did write (a report) stays.
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with Repo(str(root)) as repository:
        stage = repository.stage.get_target(step)
        for out in stage.outs:
            if not out.exists and out.hash_info:
                with contextlib.suppress(DvcException):  # the failure itself is told anyhow
                    out.checkout()


def _explain(root: Path, step: str, started: float, error: Exception) -> PipelineError:
    from dvc.dependency.param import MissingParamsError
    from dvc.stage.exceptions import StageCmdFailedError

    cause = error.__cause__ or error
    if isinstance(cause, MissingParamsError):
        return PipelineError(
            f"step {step} cannot run: {cause} DVC watches every section by its name, so each has "
            "to be there: write `NAME: {}` for a section's defaults"
        )
    if not isinstance(cause, StageCmdFailedError):
        return PipelineError(f"step {step} cannot run: {cause}")
    record = history.last(root, step, since=started)
    if record is not None and record.message:
        return StepFailedError(step, record.message, by_itself=True)
    return StepFailedError(step, _describe_exit(str(cause)), by_itself=False)


def _describe_exit(text: str) -> str:
    code = text.rpartition(" ")[2]
    number = int(code) if code.lstrip("-").isdigit() else 1
    number = number - KILLED_BY_SIGNAL if number > KILLED_BY_SIGNAL else -number
    if number > 0:
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        hint = " (out of memory, perhaps)" if name == "SIGKILL" else ""
        return f"it was ended by {name}{hint}"
    return f"it crashed with exit code {-number}; its traceback stands above"


def require_idle_dvc(root: Path) -> None:
    """Raise at once when a living process works in this checkout with DVC.

    A lock that a dead process left behind is no hindrance: the operating system freed one kind,
    and the other is removed by DVC, or here where its process id belongs to somebody else by now.

    Raises:
        PipelineError: the message names the process.
    """
    temporary = root / ".dvc" / "tmp"
    lock = temporary / "lock"
    if lock.is_file():
        with lock.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _busy(lock, file.read().strip()) from None
    table = temporary / "rwlock"
    for holder in _living_holders(table):
        if holder != os.getpid():
            raise _busy(table, str(holder))


def _busy(lock: Path, holder: str) -> PipelineError:
    import psutil

    command = ""
    # it may end while it is looked at
    with contextlib.suppress(psutil.NoSuchProcess, ValueError):
        command = f" ({' '.join(psutil.Process(int(holder)).cmdline())[:120]})"
    return PipelineError(
        f"DVC is at work in this checkout: process {holder or 'unknown'}{command} holds "
        f"{lock.parent.parent.name}/{lock.parent.name}/{lock.name}. "
        "Wait until it has ended, or end it; nothing was started or changed"
    )


def _living_holders(table: Path) -> list[int]:
    """Process ids in DVC's table of read and write locks whose process still is the same one."""
    import psutil

    try:
        written = table.stat().st_mtime
        locks: dict[str, Any] = json.loads(table.read_text(encoding="utf-8") or "{}")
    except (FileNotFoundError, json.JSONDecodeError):
        return []
    entries = [entry for infos in locks.get("read", {}).values() for entry in infos]
    entries += list(locks.get("write", {}).values())
    holders = {int(entry["pid"]) for entry in entries if entry}
    living = []
    for holder in sorted(holders):
        try:
            if psutil.Process(holder).create_time() <= written:
                living.append(holder)
        except psutil.NoSuchProcess:
            continue
    if holders and not living:
        table.unlink(missing_ok=True)
    return living


def _end_children(grace_seconds: float = 5.0) -> None:
    import psutil

    children = [
        child
        for child in psutil.Process().children(recursive=True)
        if any(argument.startswith("tasks.") for argument in _command(child))
    ]
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
            child.terminate()
    for child in psutil.wait_procs(children, timeout=grace_seconds)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _command(process: Any) -> list[str]:
    import psutil

    try:
        return list(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
