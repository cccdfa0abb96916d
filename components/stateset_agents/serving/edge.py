"""What lies around every request: the version that answers it, the size of its body, defects.

Owns what holds for all routes, and what happens when a client goes away. These are plain ASGI
layers and not `BaseHTTPMiddleware`, which runs the application in a task of its own and cuts it off
from the client's end of the line.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stateset_agents.serving.answer import Answer
from stateset_agents.serving.in_service import InService
from stateset_agents.serving.refusals import RequestError

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class ClientGoneError(Exception):
    """The client closed its connection before it had its answer."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Do the work, unless the client goes away before it is done: then it is cancelled.

    Args:
        receive: of a request whose body is here.
        work: what is done for it.

    Raises:
        ClientGoneError: the client went away.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_wait_for_leave(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _wait_for_leave(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventResponse(StreamingResponse):
    """Server-sent events of one answer, which is stopped when nobody reads them any more."""

    def __init__(self, answer: Answer, events: AsyncGenerator[str, None]) -> None:
        headers = {"Cache-Control": "no-cache"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._answer, self._events = answer, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them; ASGI's form."""
        try:
            await while_connected(receive, self.stream_response(send))
        except ClientGoneError:
            logger.debug("a client left before the end of its answer")
        finally:
            self._answer.stop()
            await self._events.aclose()


class VersionLayer:
    """Gives each request the version that answers it, in `request.state.model`, and says in every
    answer's headers which that was, whoever makes the answer.
    """

    def __init__(self, app: ASGIApp, in_service: InService) -> None:
        self._app = app
        self._in_service = in_service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's form."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._in_service.used() as model:
            scope.setdefault("state", {})["model"] = model
            headers = [(b"x-model-version", model.full_name.encode())]
            if model.run_id:
                headers.append((b"x-model-run-id", model.run_id.encode()))

            async def send_with_version(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], *headers]
                await send(message)

            await self._app(scope, receive, send_with_version)


class DefectLayer:
    """Answers 500 to what nobody expected. What such an error says is for the log: it may hold a
    path or a piece of the request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's form."""
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if scope["type"] != "http":
                raise
            if has_begun:
                raise  # half an answer: the server logs it and hangs up, so that the client notices
            logger.exception("a request failed")
            error = RequestError(500, "internal error; the server's log has the details")
            await error.response()(scope, receive, send)


class BodyLimit:
    """Answers 413 to a body that is too large, before it is all here."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's form."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []
        size = 0
        more = True
        while more:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)
            if size > self._max_bytes:
                text = f"the body is larger than {self._max_bytes:,} bytes"
                await RequestError(413, text).response()(scope, receive, send)
                return
        waiting = iter(messages)

        async def replay() -> Message:
            return next(waiting, None) or await receive()

        await self._app(scope, replay, send)
