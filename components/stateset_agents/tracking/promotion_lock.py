"""One promotion at a time.

Owns the lock that a change of the champion holds. MLflow's aliases are last-writer-wins and know no
conditions, so two promotions at once could each see the old champion and both move the alias.

Which lock depends on the store, because a lock must be where everyone who promotes can see it:
- SQLite: a file lock beside the database (all who use it share its disk); the system releases it
  when its holder dies.
- PostgreSQL: an advisory lock of a session; the server releases it when the connection ends.
- An MLflow server: a tag `promotion_lock` of the registered model with owner and expiry. Tags have
  no compare-and-set either, so the holder writes, waits `_SETTLE_SECONDS`, reads, and has the lock
  only if its own token is still there. It holds while two writers' clocks and requests are not
  apart by more than that; a holder that dies blocks others until the expiry.

The last two can be lost while they are held (a connection that broke, an expiry that passed): a
holder asks once more right before it changes something.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stateset_agents.exceptions import RegistryError
from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.mlflow_run import attributed

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TAG = "promotion_lock"
_SETTLE_SECONDS = 1.0
_EXPIRY_SECONDS = 300.0

RequireHeld = Callable[[], None]
_attributed = partial(attributed, by="the registry")


@contextlib.contextmanager
def promotion_lock(
    client: MlflowClient, tracking: TrackingConfig, seconds: float
) -> Iterator[RequireHeld]:
    """Hold the lock of this registered model for the length of a `with` block.

    Yields:
        What to call right before a change: it raises RegistryError where the lock was lost since.

    Raises:
        RegistryError: someone else holds it for longer than `seconds`, the server has no such
            registered model, or it does not answer or refuses.
    """
    uri = tracking.effective_uri
    name = tracking.registered_model
    if uri.startswith("sqlite:"):
        lock = _file_lock(uri, name, seconds)
    elif uri.startswith("postgresql"):
        lock = _advisory_lock(uri, name, seconds)
    else:
        lock = _tag_lock(client, name, seconds)
    with lock as require_held:
        yield require_held


@contextlib.contextmanager
def _file_lock(uri: str, name: str, seconds: float) -> Iterator[RequireHeld]:
    from filelock import FileLock, Timeout
    from sqlalchemy.engine import make_url

    database = make_url(uri).database or "mlflow.db"
    path = Path(f"{database}.promotion.lock")
    try:
        with FileLock(path, timeout=seconds):
            yield lambda: None  # the system's: it lasts as long as this process
    except Timeout as error:
        raise RegistryError(_held(name, f"a process on this machine (lock file {path})")) from error


@contextlib.contextmanager
def _advisory_lock(uri: str, name: str, seconds: float) -> Iterator[RequireHeld]:
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool

    key = zlib.crc32(f"stateset-agents promotion {name}".encode())
    what = f"the promotion lock of {name} in PostgreSQL"

    def ask(statement: str) -> object:
        with _attributed(what):
            return connection.execute(text(statement).bindparams(key=key)).scalar()

    def require_held() -> None:
        # (of a key of 64 bits, objid is the lower half, and this one's upper half is 0)
        mine = "locktype = 'advisory' AND pid = pg_backend_pid() AND objid = :key AND granted"
        if not ask(f"SELECT count(*) FROM pg_locks WHERE {mine}"):
            raise RegistryError(_lost(name))

    # without a pool, closing the connection ends the session, and with it the lock
    engine = create_engine(uri, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with _attributed(what):
        connection = engine.connect()
    with contextlib.closing(connection):
        deadline = time.monotonic() + seconds
        while not ask("SELECT pg_try_advisory_lock(:key)"):
            if time.monotonic() > deadline:
                raise RegistryError(_held(name, "another session of this PostgreSQL"))
            time.sleep(0.2)
        yield require_held


@contextlib.contextmanager
def _tag_lock(client: MlflowClient, name: str, seconds: float) -> Iterator[RequireHeld]:
    token = secrets.token_hex(8)
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    deadline = time.monotonic() + seconds
    while True:
        holder = _read_tag(client, name)
        if holder is None:
            row = {"owner": owner, "token": token, "expires": time.time() + _EXPIRY_SECONDS}
            with _attributed(f"the promotion lock of {name}"):
                client.set_registered_model_tag(name, _TAG, json.dumps(row))
            time.sleep(_SETTLE_SECONDS)
            holder = _read_tag(client, name)
            if holder is not None and holder["token"] == token:
                break
        if time.monotonic() > deadline:
            raise RegistryError(_held(name, str(holder["owner"]) if holder else "someone"))
        time.sleep(_SETTLE_SECONDS)

    def is_held() -> bool:
        holder = _read_tag(client, name)
        return holder is not None and holder["token"] == token

    def require_held() -> None:
        if not is_held():
            raise RegistryError(_lost(name))

    try:
        yield require_held
    except BaseException:
        # what went wrong inside is what has to be told; the tag expires by itself
        with contextlib.suppress(RegistryError):
            _give_back(client, name, is_held)
        raise
    _give_back(client, name, is_held)


def _give_back(client: MlflowClient, name: str, is_held: Callable[[], bool]) -> None:
    if is_held():
        with _attributed(f"to give back the promotion lock of {name}, which expires by itself"):
            client.delete_registered_model_tag(name, _TAG)


def _read_tag(client: MlflowClient, name: str) -> dict[str, str | float] | None:
    """Who holds the lock; None if nobody does, or did and let it expire."""
    from mlflow.exceptions import MlflowException

    try:
        text = client.get_registered_model(name).tags.get(_TAG)
    except MlflowException as error:
        raise RegistryError(
            f"MLflow cannot read the promotion lock of {name}: {error}; "
            "`make retrain` registers a first version"
        ) from error
    if not text:
        return None
    holder: dict[str, str | float] = json.loads(text)
    return holder if float(holder["expires"]) > time.time() else None


def _held(name: str, holder: str) -> str:
    return (
        f"another promotion of {name} is under way, by {holder}; wait for it and try again "
        "(promote.lock_seconds says how long to wait)"
    )


def _lost(name: str) -> str:
    return (
        f"the promotion lock of {name} was lost while it was held, so the champion was not moved: "
        "see who promotes as well (python -m flows.promote --history), then try again"
    )
