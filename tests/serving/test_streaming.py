"""A streamed answer is the answer, in OpenAI's chunks, and no part of a stop text is ever sent."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.inference.engine import GenerationRequest, GenerationResult, OnToken
from stateset_agents.inference.stub_engine import StubEngine
from stateset_agents.serving.app import create_app
from stateset_agents.serving.config import ServeConfig
from stateset_agents.serving.served_model import ServedModel
from stateset_agents.serving.stop_scanner import StopScanner

ANSWER = "Größe 48213 is late. It comes on Friday."
ASK: dict[str, Any] = {"model": "shop", "messages": [{"role": "user", "content": "Where is it?"}]}


@pytest.mark.parametrize(
    ("stops", "pieces", "sent"),
    [
        ([], ["ab", "c"], ["ab", "c"]),
        (["END"], ["abEN", "D", "never"], ["ab", "", ""]),
        (["END"], ["abEN", "X"], ["ab", "ENX"]),
        (["END"], ["E", "E", "ND"], ["", "E", ""]),
        (["ab", "b"], ["xab"], ["x"]),
        (["aab"], ["aaab"], ["a"]),
        (["\n\n"], ["one\n", "two\n", "\nthree"], ["one", "\ntwo", ""]),
    ],
)
def test_text_is_sent_up_to_a_stop_and_held_back_while_it_may_be_one(
    stops: list[str], pieces: list[str], sent: list[str]
) -> None:
    scanner = StopScanner(stops)
    assert [scanner.feed(piece) for piece in pieces] == sent


def test_what_was_held_back_for_nothing_is_sent_at_the_end() -> None:
    scanner = StopScanner(["END"])
    assert (scanner.feed("at the EN"), scanner.finish(), scanner.finish()) == ("at the ", "EN", "")
    assert not scanner.found


def client(engine: StubEngine | None = None) -> httpx.AsyncClient:
    """Of an application whose model always says `ANSWER`."""
    config = AgentConfig(model_name="x", max_new_tokens=200)
    agent = MultiTurnAgent(config, engine or StubEngine([ANSWER]))
    app = create_app(ServedModel(agent, "shop", "1", "0" * 64, 0), ServeConfig())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def ask(engine: StubEngine | None = None, **change: Any) -> tuple[httpx.Response, list[Any]]:
    """The response, and its events without the closing one."""
    async with client(engine) as one:
        response = await one.post("/v1/chat/completions", json={**ASK, "stream": True, **change})
    if response.status_code != 200:
        return response, []
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return response, [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def text_of(events: list[Any]) -> str:
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    return "".join(delta.get("content", "") for delta in deltas)


async def test_the_pieces_are_the_answer_and_have_openais_form() -> None:
    response, events = await ask()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-model-version"] == "shop/1"
    assert len(events) > 5
    assert text_of(events) == ANSWER
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert reasons == [None] * (len(events) - 1) + ["stop"]


async def test_a_stream_says_why_it_ended() -> None:
    _, cut = await ask(max_tokens=8)
    assert cut[-1]["choices"][0]["finish_reason"] == "length"
    _, stopped = await ask(stop=["late"])
    assert text_of(stopped) == "Größe 48213 is "
    assert stopped[-1]["choices"][0]["finish_reason"] == "stop"


async def test_chunks_speak_of_usage_only_where_it_was_asked_for() -> None:
    _, plain = await ask()
    assert all("usage" not in event for event in plain)
    _, counted = await ask(stream_options={"include_usage": True})
    assert [event["usage"] for event in counted[:-1]] == [None] * (len(counted) - 1)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_nothing_is_sampled_after_a_stop_text_and_its_tokens_are_the_last_counted(
    is_streamed: bool,
) -> None:
    # the stub's tokens are bytes; two letters of the answer before it take two
    tokens = len("Größe 48213 is late".encode())
    engine = CountingStub([ANSWER])
    if is_streamed:
        _, events = await ask(stop=["late"], engine=engine, stream_options={"include_usage": True})
        usage = events[-1]["usage"]
    else:
        async with client(engine) as one:
            response = await one.post("/v1/chat/completions", json={**ASK, "stop": ["late"]})
        usage = response.json()["usage"]
    assert engine.told == tokens
    assert usage["completion_tokens"] == tokens


class CountingStub(StubEngine):
    """Counts the tokens that it told, as a model would compute them."""

    told = 0

    async def generate(
        self, request: GenerationRequest, on_token: OnToken | None = None
    ) -> GenerationResult:
        def count(token: int) -> None:
            self.told += 1
            if on_token is not None:
                on_token(token)

        return await super().generate(request, count)


@pytest.mark.parametrize("stop", [None, ["late"]])
async def test_usage_is_that_of_the_same_answer_at_once(stop: list[str] | None) -> None:
    _, events = await ask(stream_options={"include_usage": True}, stop=stop)
    async with client() as one:
        at_once = await one.post("/v1/chat/completions", json={**ASK, "stop": stop})
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == at_once.json()["usage"]
    assert text_of(events) == at_once.json()["choices"][0]["message"]["content"]


async def test_what_is_wrong_with_a_request_is_an_error_and_no_stream() -> None:
    response, _ = await ask(messages=[{"role": "user", "content": "x" * 40_000}])
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    response, _ = await ask(stream=False, stream_options={"include_usage": True})
    assert response.status_code == 400
    assert "stream_options needs stream to be true" in response.json()["error"]["message"]
