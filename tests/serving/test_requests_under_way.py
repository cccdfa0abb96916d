"""What is under way ends with the client that asked for it, is never more than is allowed, and is
told when the server stops."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.inference.engine import GenerationRequest, GenerationResult, OnToken
from stateset_agents.inference.loading import load_model, load_tokenizer
from stateset_agents.inference.stub_engine import StubEngine
from stateset_agents.inference.transformers_engine import TransformersEngine
from stateset_agents.serving.app import create_app
from stateset_agents.serving.config import ServeConfig
from stateset_agents.serving.served_model import ServedModel

ASK: dict[str, Any] = {"model": "shop", "messages": [{"role": "user", "content": "Where is it?"}]}


class HeldEngine(StubEngine):
    """Says half of an answer, and the rest once it is let go."""

    def __init__(self) -> None:
        super().__init__(["Half, whole."])
        self.let_go = asyncio.Event()
        self.answering = 0

    async def generate(
        self, request: GenerationRequest, on_token: OnToken | None = None
    ) -> GenerationResult:
        assert on_token is not None
        self.answering += 1
        try:
            for token in b"Half,":
                on_token(token)
            await self.let_go.wait()
            return await super().generate(request)
        finally:
            self.answering -= 1


def make_app(engine: Any, **config: Any) -> FastAPI:
    agent = MultiTurnAgent(AgentConfig(model_name="x", max_new_tokens=64), engine)
    return create_app(ServedModel(agent, "shop", "1", "0" * 64, 0), ServeConfig(**config))


class Connection:
    """A client's end of one request, which may hang up."""

    def __init__(self, app: FastAPI, **change: Any) -> None:
        self.sent: list[Any] = []
        self.begun = asyncio.Event()
        self.hung_up = asyncio.Event()
        self._body: bytes | None = json.dumps({**ASK, **change}).encode()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},  # uvicorn's
            "method": "POST",
            "path": "/v1/chat/completions",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        self.served = asyncio.create_task(app(scope, self._receive, self._send))  # type: ignore[arg-type]

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        self.begun.set()


async def until(condition: Any) -> None:
    """Let others run, threads too, until it holds."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came true")


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_answer_whose_client_left_is_not_computed_to_its_end(
    is_streamed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    engine = HeldEngine()
    app = make_app(engine)
    connection = Connection(app, stream=is_streamed)
    await until(lambda: engine.answering == 1)
    if is_streamed:
        await connection.begun.wait()
    connection.hung_up.set()
    await connection.served
    await until(lambda: engine.answering == 0)
    await until(lambda: len(app.state.under_way) == 0)
    assert "whole" not in connection.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_client_that_left_before_the_first_piece_is_noticed_as_well() -> None:
    class Silent(HeldEngine):
        async def generate(
            self, request: GenerationRequest, on_token: OnToken | None = None
        ) -> GenerationResult:
            return await super().generate(request, lambda token: None)

    engine = Silent()
    connection = Connection(make_app(engine), stream=True)
    await until(lambda: engine.answering == 1)
    connection.hung_up.set()
    await connection.served
    await until(lambda: engine.answering == 0)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_the_engines_slot_is_free_once_the_client_has_left(
    is_streamed: bool, tiny_model_dir: Path
) -> None:
    engine = TransformersEngine(
        load_model(tiny_model_dir), load_tokenizer(tiny_model_dir), max_batch_size=1
    )
    app = make_app(engine)
    connection = Connection(app, stream=is_streamed, max_tokens=1000, temperature=0)
    await until(lambda: engine.computed_tokens > 0)
    prompt_tokens = engine.computed_tokens
    await until(lambda: engine.computed_tokens > prompt_tokens + 20)
    connection.hung_up.set()
    await connection.served
    before = engine.computed_tokens
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as one:
        body = {**ASK, "max_tokens": 8, "temperature": 0}
        usage = (await one.post("/v1/chat/completions", json=body)).json()["usage"]
    # the last sampled token is not computed; the first answer had 900 tokens and more to go
    computed = usage["prompt_tokens"] + usage["completion_tokens"] - 1
    assert engine.computed_tokens - before == computed
    await engine.aclose()


async def test_requests_beyond_the_limit_are_told_when_to_come_again() -> None:
    engine = HeldEngine()
    app = make_app(engine, max_requests=2, retry_after_seconds=7)
    first, second = Connection(app), Connection(app, stream=True)
    await until(lambda: engine.answering == 2)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as one:
        refused = await one.post("/v1/chat/completions", json=ASK)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "7")
        assert refused.json()["error"]["code"] == "overloaded"
        assert "2 requests are being answered or wait" in refused.json()["error"]["message"]
        first.hung_up.set()
        await first.served
        await until(lambda: len(app.state.under_way) == 1)
        third = asyncio.create_task(one.post("/v1/chat/completions", json=ASK))
        await until(lambda: engine.answering == 2)
        engine.let_go.set()
        assert (await third).status_code == 200
    await second.served
    assert "[DONE]" in second.text


async def test_answers_that_take_too_long_for_a_server_that_stops_end_with_an_error() -> None:
    engine = HeldEngine()
    app = make_app(engine)
    plain, streamed = Connection(app), Connection(app, stream=True)
    await until(lambda: engine.answering == 2 and ',"}' in streamed.text)
    app.state.under_way.end_all()
    await asyncio.gather(plain.served, streamed.served)
    assert plain.sent[0]["status"] == 503
    error = json.loads(plain.text)["error"]
    assert (error["code"], error["type"]) == ("stopping", "overloaded_error")
    *_, last = [line for line in streamed.text.split("\n\n") if line]
    assert json.loads(last.removeprefix("data: "))["error"] == error
    assert engine.answering == 0
