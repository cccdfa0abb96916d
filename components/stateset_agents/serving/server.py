"""The server's process: a port, a model, and a stop that lets answers under way finish.

Owns `serve`, which `make serve` and the command line call. What is answered is in `app`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from stateset_agents.exceptions import ServingError
from stateset_agents.serving.config import ServeConfig
from stateset_agents.tracking.config import TrackingConfig

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from stateset_agents.serving.in_service import InService

logger = logging.getLogger(__name__)

_BACKLOG = 2048  # connections that wait to be accepted; uvicorn's own number
_LAST_WORDS_SECONDS = 2


@dataclass(frozen=True, slots=True)
class _Source:
    """What is served, as `serve` was told."""

    reference: str | None
    folder: Path | None
    base_model: Path | None
    generation: Mapping[str, Any] | None


def serve(
    config: ServeConfig,
    tracking: TrackingConfig,
    *,
    reference: str | None = None,
    folder: Path | None = None,
    base_model: Path | None = None,
    generation: Mapping[str, Any] | None = None,
    api_key: str | None = None,
) -> None:
    """Answer chat requests until a signal (SIGINT, SIGTERM) comes.

    Args:
        config: where to listen, the limits, and how often the registry is looked at.
        tracking: where the registry is.
        reference: the version to serve, `models:/NAME@ALIAS` or `models:/NAME/VERSION`; default:
            the champion.
        folder: a model folder to serve instead.
        base_model: the base model, if `folder` holds an adapter that names another or none.
        generation: system prompt and sampling for a folder that has none of its own.
        api_key: what clients must send; default: STATESET_API_KEY; neither = everyone may ask.

    Raises:
        ServingError: the port is in use, nothing was promoted yet, the key is empty, or what is to
            be followed cannot move.
        RegistryError: the registry does not answer.
        ModelSourceError: the folder is no policy's, or its model cannot be loaded.
    """
    key = api_key if api_key is not None else os.environ.get("STATESET_API_KEY")
    if key is not None and not key.strip():
        # a secret that was not filled in must not open the server
        raise ServingError(
            "the API key is empty; give STATESET_API_KEY or --api-key a value, or unset it: then "
            "everyone who reaches the server may ask"
        )
    _check_followed(reference, config.follow_seconds, has_folder=folder is not None)
    # the port first: it would be a pity to load a model for a minute and then fail
    listener = bind(config.host, config.port)
    with contextlib.closing(listener):
        source = _Source(reference, folder, base_model, generation)
        asyncio.run(_run(config, tracking, listener, source, key))


def bind(host: str, port: int) -> socket.socket:
    """A socket that holds the address, and does not listen yet.

    Raises:
        ServingError: the address is in use, not of this machine, or not for this user.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServingError(f"cannot listen on {host}: {error}; choose another --host") from error
    try:
        # an address whose last connections are still closing is free
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _refused(host, port, error) from error
    return listener


def listen(listener: socket.socket) -> None:
    """Take connections from now on.

    Raises:
        ServingError: another process bound the same address, and has begun to listen since: the
            system notices only now.
    """
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _refused(host, port, error) from error


def _refused(host: str, port: int, error: OSError) -> ServingError:
    return ServingError(
        f"cannot listen on {host}:{port}: {error.strerror or error}; stop what uses this port, "
        "or choose another: --port (0 = a free one)"
    )


async def _run(
    config: ServeConfig,
    tracking: TrackingConfig,
    listener: socket.socket,
    source: _Source,
    api_key: str | None,
) -> None:
    from stateset_agents.serving.app import create_app
    from stateset_agents.serving.served_model import load_served_model

    model = await load_served_model(
        tracking,
        reference=source.reference,
        folder=source.folder,
        base_model=source.base_model,
        generation=source.generation,
    )
    listen(listener)
    app = create_app(model, config, api_key)
    host, port = listener.getsockname()[:2]
    guard = "with an API key" if api_key else "without an API key: everyone who reaches it may ask"
    logger.info("serving %s at http://%s:%s/v1 %s", model.full_name, host, port, guard)
    async with _following(app.state.in_service, config, tracking, source):
        await _make_server(app, config).serve(sockets=[listener])


@contextlib.asynccontextmanager
async def _following(
    in_service: InService, config: ServeConfig, tracking: TrackingConfig, source: _Source
) -> AsyncIterator[None]:
    """Within it the alias is looked at, if that was asked for."""
    if not config.follow_seconds:
        yield
        return
    from stateset_agents.serving.follow import Follower
    from stateset_agents.tracking.registry import champion_address

    reference = source.reference or champion_address(tracking)
    seconds = config.follow_seconds
    follower = Follower(in_service, tracking, reference, seconds, source.generation)
    logger.info("%s is looked at every %g s", reference, seconds)
    following = asyncio.create_task(follower.run())
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def _make_server(app: FastAPI, config: ServeConfig) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # uvicorn's own sends itself the signal again afterwards, which would make a stop that
            # went well end the process as if it had been killed
            loop = asyncio.get_running_loop()
            in_main_thread = threading.current_thread() is threading.main_thread()
            signals = [signal.SIGINT, signal.SIGTERM] if in_main_thread else []
            for one in signals:
                loop.add_signal_handler(one, self.handle_exit, one, None)
            yield
            for one in signals:
                loop.remove_signal_handler(one)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if not self.should_exit:
                loop = asyncio.get_running_loop()
                loop.call_later(config.shutdown_seconds, app.state.under_way.end_all)
            super().handle_exit(sig, frame)

    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        # who waits is told first that it took too long, see `UnderWay.end_all`
        timeout_graceful_shutdown=config.shutdown_seconds + _LAST_WORDS_SECONDS,
    )
    return Server(settings)


def _check_followed(reference: str | None, seconds: float, *, has_folder: bool) -> None:
    """What is followed must be able to move.

    Raises:
        ServingError: a folder, or a version by its number.
    """
    if not seconds:
        return
    if has_folder:
        raise ServingError(
            "a folder cannot be followed: leave --follow out, or serve from the registry: "
            "--model models:/NAME@ALIAS"
        )
    if reference is not None and "@" not in reference:
        raise ServingError(
            f"{reference} names one version for good, so there is nothing to follow: leave "
            "--follow out, or name an alias: --model models:/NAME@ALIAS"
        )
