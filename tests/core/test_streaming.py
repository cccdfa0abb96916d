"""An answer piece by piece is the answer, and whoever stops listening stops it."""

from __future__ import annotations

from pathlib import Path

import pytest

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.core.recorder import EpisodeRecorder, recording
from stateset_agents.exceptions import ContextLengthError
from stateset_agents.inference.stub_engine import StubEngine
from stateset_agents.inference.transformers_engine import TransformersEngine

HELLO = [{"role": "user", "content": "Hello!"}]


def stub(responses: list[str], **settings: object) -> MultiTurnAgent:
    config = AgentConfig(model_name="x", **settings)  # type: ignore[arg-type]
    return MultiTurnAgent(config, StubEngine(responses))


async def test_an_answer_comes_in_pieces_and_no_character_in_two() -> None:
    agent = stub(["Größer 🙂"])
    assert [piece async for piece in agent.stream_response(HELLO)] == list("Größer 🙂")


async def test_of_thoughts_nothing_is_told() -> None:
    agent = stub(["<think>secret</think>\nHi"], enable_reasoning=True)
    assert [piece async for piece in agent.stream_response(HELLO)] == ["H", "i"]


async def test_pieces_of_a_real_models_answer_are_its_answer(tiny_model_dir: Path) -> None:
    config = AgentConfig(model_name=str(tiny_model_dir), temperature=1.0, max_new_tokens=24, seed=4)
    agent = MultiTurnAgent(config)
    await agent.initialize()
    pieces = [piece async for piece in agent.stream_response(HELLO)]
    assert len(pieces) > 4
    answer = await agent.generate_response(HELLO)
    assert "".join(pieces) == answer.rstrip("\ufffd")
    await agent.engine.aclose()


async def test_a_streamed_answer_is_recorded_like_any_other() -> None:
    agent = stub(["One.", "One."])
    streamed, at_once = EpisodeRecorder("c", seed=0), EpisodeRecorder("c", seed=0)
    with recording(streamed):
        assert "".join([piece async for piece in agent.stream_response(HELLO)]) == "One."
    with recording(at_once):
        await agent.generate_response(HELLO)
    assert streamed.recorded == at_once.recorded


async def test_the_last_word_of_a_subclass_is_streamed_as_one_piece() -> None:
    class Polite(MultiTurnAgent):
        async def generate_response(self, conversation_history):  # type: ignore[no-untyped-def]
            return await super().generate_response(conversation_history) + ", please"

    agent = Polite(AgentConfig(model_name="x"), StubEngine(["Wait"]))
    assert [piece async for piece in agent.stream_response(HELLO)] == ["Wait, please"]


async def test_what_goes_wrong_is_raised_to_who_listens() -> None:
    agent = MultiTurnAgent(AgentConfig(model_name="x"), StubEngine(max_context_tokens=100))
    with pytest.raises(ContextLengthError):
        async for _ in agent.stream_response(HELLO):
            pass


async def test_who_stops_listening_stops_the_generation(tiny_model_dir: Path) -> None:
    config = AgentConfig(model_name=str(tiny_model_dir), temperature=1.0, max_new_tokens=400)
    agent = MultiTurnAgent(config)
    await agent.initialize()
    engine = agent.engine
    assert isinstance(engine, TransformersEngine)
    stream = agent.stream_response(HELLO)
    async for _ in stream:
        break
    await stream.aclose()
    # another answer is computed after it, and the first has not gone on beside it
    before = engine.computed_tokens
    short = MultiTurnAgent(config.model_copy(update={"max_new_tokens": 5}), engine)
    await short.generate_response(HELLO)
    assert engine.computed_tokens - before <= 100
    await engine.aclose()
