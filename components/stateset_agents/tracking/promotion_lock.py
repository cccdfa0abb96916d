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
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stateset_agents.exceptions import RegistryError
from stateset_agents.tracking.config import TrackingConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TAG = "promotion_lock"
_SETTLE_SECONDS = 1.0
_EXPIRY_SECONDS = 300.0


@contextlib.contextmanager
def promotion_lock(
    client: MlflowClient, tracking: TrackingConfig, seconds: float
) -> Iterator[None]:
    """Hold the lock of this registered model for the length of a `with` block.

    Raises:
        RegistryError: someone else holds it for longer than `seconds`, or the server has no such
            registered model.
    """
    uri = tracking.effective_uri
    name = tracking.registered_model
    if uri.startswith("sqlite:"):
        lock = _file_lock(uri, name, seconds)
    elif uri.startswith("postgresql"):
        lock = _advisory_lock(uri, name, seconds)
    else:
        lock = _tag_lock(client, name, seconds)
    with lock:
        yield


@contextlib.contextmanager
def _file_lock(uri: str, name: str, seconds: float) -> Iterator[None]:
    from filelock import FileLock, Timeout
    from sqlalchemy.engine import make_url

    database = make_url(uri).database or "mlflow.db"
    path = Path(f"{database}.promotion.lock")
    try:
        with FileLock(path, timeout=seconds):
            yield
    except Timeout as error:
        raise RegistryError(_held(name, f"a process on this machine (lock file {path})")) from error


@contextlib.contextmanager
def _advisory_lock(uri: str, name: str, seconds: float) -> Iterator[None]:
    from sqlalchemy import create_engine, text

    key = zlib.crc32(f"stateset-agents promotion {name}".encode())
    engine = create_engine(uri, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            deadline = time.monotonic() + seconds
            take = text("SELECT pg_try_advisory_lock(:key)").bindparams(key=key)
            while not connection.execute(take).scalar():
                if time.monotonic() > deadline:
                    raise RegistryError(_held(name, "another session of this PostgreSQL"))
                time.sleep(0.2)
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:key)").bindparams(key=key))
    finally:
        engine.dispose()


@contextlib.contextmanager
def _tag_lock(client: MlflowClient, name: str, seconds: float) -> Iterator[None]:
    token = secrets.token_hex(8)
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    deadline = time.monotonic() + seconds
    while True:
        holder = _read_tag(client, name)
        if holder is None:
            row = {"owner": owner, "token": token, "expires": time.time() + _EXPIRY_SECONDS}
            client.set_registered_model_tag(name, _TAG, json.dumps(row))
            time.sleep(_SETTLE_SECONDS)
            holder = _read_tag(client, name)
            if holder is not None and holder["token"] == token:
                break
        if time.monotonic() > deadline:
            raise RegistryError(_held(name, str(holder["owner"]) if holder else "someone"))
        time.sleep(_SETTLE_SECONDS)
    try:
        yield
    finally:
        holder = _read_tag(client, name)
        if holder is not None and holder["token"] == token:
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
