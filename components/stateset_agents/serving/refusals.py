"""Requests that are answered with an error, in OpenAI's form.

Owns which error is which status, and what a client is told of it.
"""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from stateset_agents.exceptions import ContextLengthError, DataError, ServingError, StateSetError
from stateset_agents.serving.protocol import error_body, explain_validation

logger = logging.getLogger(__name__)

_KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    413: "invalid_request_error",
    503: "overloaded_error",
}


class RequestError(ServingError):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        message: for the person who asked.
        param: the field concerned.
        code: for a program.
        retry_after: seconds after which it may be asked again; None: that would not help.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """OpenAI's `type` of it."""
        kind = _KINDS.get(self.status)
        return kind or ("server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, object]:
        """In OpenAI's form."""
        return error_body(self.message, self.kind, param=self.param, code=self.code)

    def response(self) -> JSONResponse:
        """With the headers that belong to its status."""
        headers = {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return JSONResponse(self.body(), self.status, headers)


def as_request_error(error: StateSetError) -> RequestError:
    """What a client is told of an error that a request met."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ContextLengthError):
        code = "context_length_exceeded"
        return RequestError(400, str(error), param="messages", code=code)
    if isinstance(error, DataError):
        return RequestError(400, str(error), param="messages")
    logger.error("a request failed: %s", error)
    return RequestError(500, str(error))


def add_error_handlers(app: FastAPI) -> None:
    """Answer what routes raise, and what is no route, in OpenAI's form."""

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
        return as_request_error(error).response()
