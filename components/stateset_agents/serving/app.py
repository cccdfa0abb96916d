"""The HTTP application: routes, authentication and limits.

Owns what a client sees. Every answer, errors included, says in the header `x-model-version` which
version gave it. How a request is answered is in `answer`, what lies around all requests in `edge`.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from stateset_agents.serving.config import ServeConfig
from stateset_agents.serving.edge import (
    BodyLimit,
    ClientGoneError,
    DefectLayer,
    EventResponse,
    VersionLayer,
    while_connected,
)
from stateset_agents.serving.in_service import InService
from stateset_agents.serving.protocol import ChatRequest
from stateset_agents.serving.refusals import RequestError, add_error_handlers
from stateset_agents.serving.served_model import ServedModel
from stateset_agents.serving.under_way import UnderWay

_CLIENT_GONE = 499  # seen by nobody; nginx's number


def create_app(model: ServedModel, config: ServeConfig, api_key: str | None = None) -> FastAPI:
    """The application for a model that is loaded; it closes the model's engine when it ends.

    Args:
        model: what answers; `app.state.in_service` exchanges it while the application runs.
        config: the limits.
        api_key: what clients must send as a bearer token on /v1; None = everyone may ask.
    """
    in_service = InService(model)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.is_ready = True
        yield
        app.state.is_ready = False
        await in_service.aclose()

    app = FastAPI(title="stateset-agents", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.in_service = in_service
    app.state.under_way = UnderWay(config)
    app.state.config = config
    app.state.api_key = api_key
    app.state.is_ready = False
    _add_routes(app)
    add_error_handlers(app)
    # the last one lies outermost
    app.add_middleware(DefectLayer)
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)
    app.add_middleware(VersionLayer, in_service=in_service)
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
        return await _complete(request, body)

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
    async def ready(
        request: Request, model: Annotated[ServedModel, Depends(_current)]
    ) -> JSONResponse:
        is_ready = bool(request.app.state.is_ready)
        body = {"status": "ready" if is_ready else "stopping", "model": model.full_name}
        return JSONResponse(body, 200 if is_ready else 503)


async def _complete(request: Request, body: ChatRequest) -> Response:
    model = _current(request)
    _check_limits(body, model, request.app.state.config)
    under_way: UnderWay = request.app.state.under_way
    answer = under_way.begin(model, body)
    streams = False
    try:
        if body.stream:
            # what is wrong with the request is raised before the answer has begun
            await while_connected(request.receive, answer.begun())
            response = EventResponse(answer, model.events(answer, with_usage=body.wants_usage))
            streams = True
            return response
        return JSONResponse(await while_connected(request.receive, model.completion(answer)))
    except ClientGoneError:
        return Response(status_code=_CLIENT_GONE)
    finally:
        if not streams:  # a stream stops its answer itself, at its end
            answer.stop()


def _current(request: Request) -> ServedModel:
    """The version that this request met when it came."""
    model: ServedModel = request.state.model
    return model


def _describe(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "stateset-agents",
        "version": model.version,
        "run_id": model.run_id or None,
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
