"""Where a study is kept: a journal file by default, a database by URL.

One setting decides. A journal file serves the processes of one machine (several processes that
create one SQLite study at once crash; a journal does not); PostgreSQL serves many machines.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from stateset_agents.exceptions import ConfigurationError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


class _KernelLock:
    """Optuna's lock on a journal, as the operating system's: it ends with its holder. Optuna's own
    outlives a process that is killed, and everybody waits for half a minute.
    """

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(f"{path}.writing")

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def open_storage(address: str) -> BaseStorage:
    """Open the storage that `address` names.

    Args:
        address: a file path (a journal, made if it is missing) or `postgresql://...`, with any
            SQLAlchemy driver.

    Raises:
        ConfigurationError: another kind of URL, a file that cannot be written, or a database that
            does not answer.
    """
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    scheme, separator, _ = address.partition("://")
    if not separator:
        path = Path(address)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
        except OSError as error:
            raise ConfigurationError(
                f"study storage {address!r} cannot be written: {error.strerror}; give another file "
                "path, or postgresql://USER@HOST:PORT/DATABASE"
            ) from error
        lock: Any = _KernelLock(path)  # of the base class that loading settings must not import
        _check_journal(path)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    if not scheme.startswith("postgresql"):
        raise ConfigurationError(
            f"study storage {address!r}: {scheme}:// is not supported; give a file path (one "
            "machine) or postgresql://USER@HOST:PORT/DATABASE (many)"
        )
    try:
        return RDBStorage(address, engine_kwargs={"connect_args": {"connect_timeout": 10}})
    except Exception as error:
        # SQLAlchemy's errors differ by driver; whatever it was, the address is what to look at.
        shown = address.split("@")[-1]
        raise ConfigurationError(
            f"study storage postgresql://...@{shown} cannot be opened: {error}; start the "
            "database, or give a file path to keep studies on this machine"
        ) from error


def _check_journal(path: Path) -> None:
    """Optuna tells of a file of something else by a traceback, and only once it writes to it."""
    with path.open("rb") as file:
        first = file.readline()
    try:
        is_journal = not first or isinstance(json.loads(first), dict)
    except ValueError:
        is_journal = not first.endswith(b"\n")  # half a line of a process that died
    if not is_journal:
        raise ConfigurationError(
            f"study storage {str(path)!r} is no journal of studies; give the path of another "
            "file, which may be new"
        )
