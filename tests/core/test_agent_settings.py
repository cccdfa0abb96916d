"""Every setting of an agent does what it names; where another file shows it, that file is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.core.recorder import EpisodeRecorder, recording
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.inference.engine import GenerationRequest, GenerationResult, OnToken
from stateset_agents.inference.stub_engine import StubEngine

HELLO = [{"role": "user", "content": "Hello!"}]
SHOWN_HERE = {
    *("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed"),
    *("system_prompt", "torch_dtype", "engine"),
}
SHOWN_ELSEWHERE = {
    "test_agent.py": {"use_stub_model", "stub_responses", "device_map"},
    "test_context_compression.py": {
        *("enable_context_compression", "max_context_tokens"),
        *("compression_ratio", "compression_strategy"),
    },
    "test_reasoning.py": {"enable_reasoning", "reasoning_tags"},
    "../inference/test_model_names.py": {"model_name", "attn_implementation"},
}


def test_no_setting_is_forgotten() -> None:
    assert set(AgentConfig.model_fields) == SHOWN_HERE.union(*SHOWN_ELSEWHERE.values())
    for file, settings in SHOWN_ELSEWHERE.items():
        text = (Path(__file__).parent / file).read_text()
        assert all(setting in text for setting in settings)


class Remembers(StubEngine):
    """Answers like the stub, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(["Certainly."])
        self.asked: list[GenerationRequest] = []

    async def generate(
        self, request: GenerationRequest, on_token: OnToken | None = None
    ) -> GenerationResult:
        self.asked.append(request)
        return await super().generate(request, on_token)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_new_tokens", 7),
        ("temperature", 0.3),
        ("top_p", 0.9),
        ("top_k", 50),
        ("repetition_penalty", 1.2),
        ("seed", 11),
    ],
)
async def test_how_to_sample_is_what_the_engine_is_asked_for(setting: str, value: Any) -> None:
    engine = Remembers()
    await MultiTurnAgent(AgentConfig(model_name="x", **{setting: value}), engine).generate_response(
        HELLO
    )
    (request,) = engine.asked
    assert getattr(request.sampling, setting) == value
    assert getattr(AgentConfig(model_name="x"), setting) != value


async def test_the_system_prompt_comes_first() -> None:
    engine = Remembers()
    agent = MultiTurnAgent(AgentConfig(model_name="x", system_prompt="Be kind."), engine)
    await agent.generate_response(HELLO)
    prompt = engine.tokenizer.hf.decode(engine.asked[0].prompt_token_ids)
    assert prompt.startswith("<|im_start|>system\nBe kind.<|im_end|>")


async def test_the_number_format_is_the_one_that_computes(tiny_model_dir: Path) -> None:
    heard = {}
    for name in ("float32", "bfloat16"):
        config = AgentConfig(model_name=str(tiny_model_dir), torch_dtype=name, max_new_tokens=4)  # type: ignore[arg-type]
        agent = MultiTurnAgent(config)
        await agent.initialize()
        with recording(EpisodeRecorder("c", seed=0)) as recorder:
            await agent.generate_response(HELLO)
        await agent.engine.aclose()
        heard[name] = recorder.samples[0].logprobs[0]
    assert heard["float32"] != heard["bfloat16"]
    assert heard["float32"] == pytest.approx(heard["bfloat16"], abs=0.1)


async def test_the_vllm_engine_is_made_where_it_is_asked_for_and_else_not(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)  # as where it is not installed
    agent = MultiTurnAgent(AgentConfig(model_name=str(tiny_model_dir), engine="vllm"))
    with pytest.raises(ConfigurationError, match="the vllm engine needs vLLM"):
        await agent.initialize()
