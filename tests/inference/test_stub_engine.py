"""The stub engine keeps the protocol, at once and without torch."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence

import pytest

from stateset_agents.exceptions import ConfigurationError, ContextLengthError, EngineError
from stateset_agents.inference.engine import (
    Engine,
    FinishReason,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
)
from stateset_agents.inference.stub_engine import StubEngine


def ask(engine: StubEngine, times: int, max_new_tokens: int = 128) -> Sequence[GenerationResult]:
    prompt = tuple(engine.tokenizer.render([{"role": "user", "content": "Hi"}]))
    request = GenerationRequest(prompt, SamplingParams(max_new_tokens))

    async def in_turn() -> list[GenerationResult]:
        return [await engine.generate(request) for _ in range(times)]

    return asyncio.run(in_turn())


def test_responses_come_in_turn_and_then_again() -> None:
    engine = StubEngine(["One.", "Zwei ü."])
    assert isinstance(engine, Engine)
    results = ask(engine, 3)
    texts = [engine.tokenizer.decode(result.token_ids) for result in results]
    assert texts == ["One.", "Zwei ü.", "One."]
    for result in results:
        assert result.token_ids[-1] in engine.tokenizer.stop_token_ids
        assert len(result.logprobs) == len(result.token_ids)
        assert all(logprob < 0 for logprob in result.logprobs)
        assert result.finish_reason is FinishReason.STOP


def test_a_long_response_is_cut_to_the_tokens_asked_for() -> None:
    (result,) = ask(StubEngine(["A long answer."]), 1, max_new_tokens=6)
    assert bytes(result.token_ids) == b"A long"
    assert result.finish_reason is FinishReason.LENGTH


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="list of texts; found 3"):
        StubEngine(["good", 3])  # type: ignore[list-item]
    with pytest.raises(ContextLengthError, match="exceed the context of 20"):
        ask(StubEngine(max_context_tokens=20), 1)
    closed = StubEngine()
    asyncio.run(closed.aclose())
    with pytest.raises(EngineError, match="closed"):
        ask(closed, 1)


def test_the_stub_engine_needs_neither_torch_nor_transformers() -> None:
    program = (
        "import sys, stateset_agents.inference.stub_engine;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
