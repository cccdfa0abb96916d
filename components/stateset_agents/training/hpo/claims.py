"""Who is at work on a trial, and taking one up whose worker died.

Owns the owner that a running trial carries, and the lock under which trials are handed out. A
process that is killed leaves its trial "running"; the next process that looks sees that the owner
is gone and goes on with the same trial, its number and parameters. On one machine the operating
system says who is alive; of other machines, whose workers meet in a database, a sign of life in
the trial itself does.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

OWNER = "owner"
SIGN_OF_LIFE_SECONDS = 30.0
DEAD_AFTER_SECONDS = 300.0
ATTEMPTS = "attempts"
MOST_ATTEMPTS = 3
DEADLY = f"{MOST_ATTEMPTS} processes died in this trial; did they run out of memory?"

_log = logging.getLogger(__name__)


def is_database(address: str) -> bool:
    """True for a storage that several machines may share."""
    return "://" in address


@contextlib.contextmanager
def handing_out(storage: BaseStorage, address: str, study_name: str) -> Iterator[None]:
    """Be the only one who hands out trials of this study, on any machine.

    The lock is the file system's or the database's: it ends with the process that holds it.
    """
    if not is_database(address):
        from filelock import FileLock

        with FileLock(f"{address}.handing-out"):
            yield
        return
    from sqlalchemy import text

    key = int.from_bytes(hashlib.blake2b(study_name.encode(), digest_size=8).digest(), "big") >> 1
    database: Any = getattr(storage, "_backend", storage)  # Optuna wraps it in a cache
    with database.engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": key})


def claim(trial: Trial) -> None:
    """Write down that this process is at work on the trial."""
    trial.set_user_attr(OWNER, {**_this_process(), "alive_at": time.time()})


def take(trial: Trial) -> None:
    """Claim a trial that this process begins, or begins again."""
    trial.set_user_attr(ATTEMPTS, trial.user_attrs.get(ATTEMPTS, 0) + 1)
    claim(trial)


def attempts(trial: FrozenTrial) -> int:
    """How many processes have begun a trial."""
    return int(trial.user_attrs.get(ATTEMPTS, 0))


def is_owned(trial: FrozenTrial) -> bool:
    """Whether a running trial's owner is at work on it still."""
    owner = trial.user_attrs.get(OWNER)
    if not owner:
        return False
    if owner["host"] == platform.node():
        return bool(_start_of(owner["pid"]) == owner["started"])
    return bool(time.time() - owner["alive_at"] < DEAD_AFTER_SECONDS)


@contextlib.contextmanager
def keeping(trial: Trial, address: str) -> Iterator[None]:
    """Give signs of life for the length of the block; a block that raises gives the trial back."""
    from optuna.exceptions import OptunaError, UpdateFinishedTrialError
    from sqlalchemy.exc import SQLAlchemyError

    ended = threading.Event()

    def give_signs() -> None:
        while not ended.wait(SIGN_OF_LIFE_SECONDS):
            try:
                claim(trial)
            except UpdateFinishedTrialError:
                return
            except (OptunaError, SQLAlchemyError) as error:
                # the next sign may get through; others take the trial after DEAD_AFTER_SECONDS
                _log.warning("no sign of life for trial %d: %s", trial.number, error)

    thread = threading.Thread(target=give_signs, name="trial-sign-of-life", daemon=True)
    if is_database(address):
        thread.start()
    try:
        yield
    except BaseException:
        _end(thread, ended)
        with contextlib.suppress(UpdateFinishedTrialError):  # it had ended: nothing to give back
            trial.set_user_attr(OWNER, None)
        raise
    _end(thread, ended)


def _end(thread: threading.Thread, ended: threading.Event) -> None:
    ended.set()
    if thread.is_alive():
        thread.join()


def _this_process() -> Mapping[str, Any]:
    return {"host": platform.node(), "pid": os.getpid(), "started": _start_of(os.getpid())}


def _start_of(pid: int) -> str | None:
    """When a living process began, in the kernel's ticks, or "?" where the system does not say;
    None where there is no such process. A number is given to another process in time.
    """
    try:
        # "pid (name) state ppid ...": the name may hold spaces and brackets
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        if Path("/proc/self").exists():
            return None
        return "?" if _answers(pid) else None
    return None if fields[0] == "Z" else fields[19]


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
