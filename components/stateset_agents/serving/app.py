"""The HTTP application: routes, authentication, limits, and errors in OpenAI's form.

Owns what a client sees. Every answer, errors included, says in the header `x-model-version` which
version is in service. How a request is answered is in `served_model`.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stateset_agents.exceptions import ContextLengthError, DataError, StateSetError
from stateset_agents.serving.config import ServeConfig
from stateset_agents.serving.protocol import ChatRequest, error_body, explain_validation
from stateset_agents.serving.served_model import ServedModel

logger = logging.getLogger(__name__)

_KINDS = {401: "authentication_error", 404: "not_found_error", 413: "invalid_request_error"}


class RequestError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def response(self) -> JSONResponse:
        """In OpenAI's form."""
        kind = _KINDS.get(self.status)
        kind = kind or ("server_error" if self.status >= 500 else "invalid_request_error")
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else None
        body = error_body(self.message, kind, param=self.param, code=self.code)
        return JSONResponse(body, self.status, headers)


def create_app(model: ServedModel, config: ServeConfig, api_key: str | None = None) -> FastAPI:
    """The application for a model that is loaded; it closes the model's engine when it ends.

    Args:
        model: what answers. `app.state.model` may be replaced while the application runs.
        config: the limits.
        api_key: what clients must send as a bearer token on /v1; None = everyone may ask.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.is_ready = True
        yield
        app.state.is_ready = False
        await app.state.model.agent.engine.aclose()

    app = FastAPI(title="stateset-agents", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.model = model
    app.state.config = config
    app.state.api_key = api_key
    app.state.is_ready = False
    _add_routes(app)
    _add_error_handlers(app)
    app.add_middleware(_BodyLimit, max_bytes=config.max_body_bytes)
    app.add_middleware(_VersionHeader, application=app)
    return app


def _check_key(request: Request) -> None:
    expected: str | None = request.app.state.api_key
    if expected is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # as bytes and in constant time: how long a comparison takes must not tell how much was right
    # (headers come decoded as Latin-1; a key of other letters was sent as UTF-8)
    sent = given.strip().encode("latin-1", "replace")
    matches = hmac.compare_digest(sent, expected.strip().encode())
    if scheme.lower() != "bearer" or not matches:
        message = "a valid API key is needed: send the header `Authorization: Bearer KEY`"
        raise RequestError(401, message, code="invalid_api_key")


def _add_routes(app: FastAPI) -> None:
    key = [Depends(_check_key)]

    @app.post("/v1/chat/completions", dependencies=key)
    async def complete(request: Request, body: ChatRequest) -> Response:
        model: ServedModel = request.app.state.model
        _check_limits(body, model, request.app.state.config)
        if body.stream:
            # what is wrong with the request is raised before the answer has begun
            events = await model.stream(body)
            headers = {"Cache-Control": "no-cache"}
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        return JSONResponse(await model.complete(body))

    @app.get("/v1/models", dependencies=key)
    async def models(model: Annotated[ServedModel, Depends(_current)]) -> dict[str, Any]:
        return {"object": "list", "data": [_describe(model)]}

    @app.get("/v1/models/{name:path}", dependencies=key)
    async def one_model(
        name: str, model: Annotated[ServedModel, Depends(_current)]
    ) -> dict[str, Any]:
        _check_name(name, model)
        return _describe(model)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready(request: Request) -> JSONResponse:
        model: ServedModel = request.app.state.model
        is_ready = bool(request.app.state.is_ready)
        body = {"status": "ready" if is_ready else "stopping", "model": model.full_name}
        return JSONResponse(body, 200 if is_ready else 503)


def _current(request: Request) -> ServedModel:
    model: ServedModel = request.app.state.model
    return model


def _describe(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "stateset-agents",
        "version": model.version,
        "system_fingerprint": model.fingerprint,
    }


def _check_name(name: str, model: ServedModel) -> None:
    if not model.answers_to(name):
        raise RequestError(
            404,
            f"the model {name!r} is not served here; use {model.name!r} or {model.full_name!r}",
            param="model",
            code="model_not_found",
        )


def _check_limits(body: ChatRequest, model: ServedModel, config: ServeConfig) -> None:
    _check_name(body.model, model)
    if len(body.messages) > config.max_messages:
        raise RequestError(
            400,
            f"messages: {len(body.messages)} of them; at most {config.max_messages} are allowed",
            param="messages",
        )
    if body.answer_tokens is not None and body.answer_tokens > config.max_answer_tokens:
        raise RequestError(
            400,
            f"max_tokens: {body.answer_tokens}; at most {config.max_answer_tokens} are allowed",
            param="max_tokens",
        )


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(_request: Request, error: RequestError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        message, field = explain_validation(list(error.errors()))
        return RequestError(400, message, param=field).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return RequestError(error.status_code, message).response()

    @app.exception_handler(StateSetError)
    async def failed(_request: Request, error: StateSetError) -> JSONResponse:
        if isinstance(error, ContextLengthError):
            code = "context_length_exceeded"
            return RequestError(400, str(error), param="messages", code=code).response()
        if isinstance(error, DataError):
            return RequestError(400, str(error), param="messages").response()
        logger.error("a request failed: %s", error)
        return RequestError(500, str(error)).response()

    # What an unexpected error says is for the log: it may hold a path or a piece of the request.
    # It is caught here and not by starlette's outermost handler, which is outside our middleware.
    @app.middleware("http")
    async def unexpected(request: Request, call_next: Any) -> Any:
        try:
            return await call_next(request)
        except Exception:
            logger.exception("a request failed")
            return RequestError(500, "internal error; the server's log has the details").response()


class _VersionHeader:
    """Adds `x-model-version` to every answer, whoever makes it."""

    def __init__(self, app: ASGIApp, application: FastAPI) -> None:
        self._app = app
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        version = self._application.state.model.full_name.encode()

        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-model-version", version)]
            await send(message)

        await self._app(scope, receive, send_with_version)


class _BodyLimit:
    """Answers 413 to a body that is too large, before it is all here."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
