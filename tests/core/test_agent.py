"""Agents: the guide's forms, what is recorded, and what is never tokenised twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.core.recorder import EpisodeRecorder, current_recorder, recording
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.exceptions import ConfigurationError, ContextLengthError, DataError
from stateset_agents.inference.stub_engine import StubEngine

HELLO = {"role": "user", "content": "Hello!"}


async def stub_agent(
    kind: type[MultiTurnAgent] = MultiTurnAgent,
    responses: list[str] | None = None,
    **settings: object,
) -> MultiTurnAgent:
    config = AgentConfig(
        model_name="stub://demo",
        use_stub_model=True,
        stub_responses=responses or ["One.", "Two.", "Three."],
        **settings,  # type: ignore[arg-type]
    )
    agent = kind(config)
    await agent.initialize()
    return agent


def prompts(agent: MultiTurnAgent, recorder: EpisodeRecorder) -> list[str]:
    """What the model saw, call by call; the stub's tokens are bytes, so nothing is hidden."""
    decode = agent.tokenizer.hf.decode
    return [decode(list(sample.prompt_token_ids)) for sample in recorder.samples]


def test_a_stub_agent_answers_without_importing_torch_or_transformers() -> None:
    program = """
import asyncio, sys
from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
agent = MultiTurnAgent(AgentConfig(
    model_name="stub://demo", use_stub_model=True, stub_responses=["At once."]))
asyncio.run(agent.initialize())
answer = asyncio.run(agent.generate_response([{"role": "user", "content": "Hello!"}]))
assert answer == "At once.", answer
assert not {"torch", "transformers", "mlflow"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"temprature": 1.0}, "temprature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"torch_dtype": "int8"}, "torch_dtype"),
        ({"model_name": ""}, "model_name"),
        ({"use_stub_model": True, "stub_responses": []}, "stub_responses"),
        ({"use_stub_model": True, "stub_responses": "Hi."}, "stub_responses"),
    ],
)
def test_a_setting_that_cannot_work_is_named(settings: dict[str, object], key: str) -> None:
    with pytest.raises((ConfigurationError, ValidationError), match=key):
        AgentConfig(**{"model_name": "folder", **settings})  # type: ignore[arg-type]


def test_settings_that_contradict_each_other_are_all_named() -> None:
    with pytest.raises(ConfigurationError) as caught:
        AgentConfig(
            model_name="stub://demo",
            stub_responses=["Hi."],
            engine="vllm",
            device_map="cuda:1",
            reasoning_tags=("<think>", "<think>"),
        )
    for part in (
        "set use_stub_model=True",
        "stub_responses",
        "but vLLM computes",
        "reasoning_tags",
    ):
        assert part in str(caught.value)


def test_a_setting_is_checked_when_it_is_changed_later_too() -> None:
    config = AgentConfig(model_name="folder")
    for name, value in (
        ("temperature", -1),
        ("top_k", 0.5),
        ("attn_implementation", "flash"),
        ("device_map", "gpu0"),
        ("stub_responses", ["Hi."]),
        ("temprature", 1.0),
    ):
        with pytest.raises(ConfigurationError, match=name):
            setattr(config, name, value)
    assert config == AgentConfig(model_name="folder")
    config.temperature = 0.5
    assert config.temperature == 0.5


async def test_a_device_that_is_not_there_is_named(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    agent = MultiTurnAgent(AgentConfig(model_name=str(tiny_model_dir), device_map="cuda:0"))
    with pytest.raises(ConfigurationError, match="'cuda:0', and torch finds no CUDA device"):
        await agent.initialize()


def test_a_config_of_another_type_is_named() -> None:
    with pytest.raises(ConfigurationError, match="given a dict for its config; an AgentConfig"):
        MultiTurnAgent({"model_name": "gpt2"})  # type: ignore[arg-type]


async def test_an_agent_that_was_not_initialized_says_what_to_call() -> None:
    agent = MultiTurnAgent(AgentConfig(model_name="folder"))
    with pytest.raises(ConfigurationError, match=r"await agent\.initialize\(\)"):
        await agent.generate_response([HELLO])


async def test_an_engine_that_was_given_is_kept_by_initialize() -> None:
    engine = StubEngine(["Mine."])
    agent = MultiTurnAgent(AgentConfig(model_name="folder"), engine=engine)
    await agent.initialize()
    assert agent.engine is engine


async def test_system_prompt_and_policy_become_one_system_message() -> None:
    agent = await stub_agent(system_prompt="Be kind.")
    recorder = EpisodeRecorder("c", seed=0)
    with recording(recorder):
        await agent.generate_response([{"role": "system", "content": "Refunds: never."}, HELLO])
    assert prompts(agent, recorder) == [
        "<|im_start|>system\nBe kind.\n\nRefunds: never.<|im_end|>\n"
        "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    ]


async def test_turns_and_plain_messages_are_the_same_history() -> None:
    agent = await stub_agent()
    recorder = EpisodeRecorder("c", seed=0)
    with recording(recorder):
        await agent.generate_response([ConversationTurn("user", "Hello!")])  # type: ignore[list-item]
        await agent.generate_response([HELLO])
    first, second = prompts(agent, recorder)
    assert first == second


@pytest.mark.parametrize("history", [[], [{"role": "user"}], [3], [{"role": "user", "content": 3}]])
async def test_a_history_that_is_none_is_refused(history: list[object]) -> None:
    agent = await stub_agent()
    with pytest.raises(DataError):
        await agent.generate_response(history)  # type: ignore[arg-type]


async def test_a_prompt_beyond_the_context_is_refused() -> None:
    agent = MultiTurnAgent(AgentConfig(model_name="x"), engine=StubEngine(max_context_tokens=100))
    with pytest.raises(ContextLengthError):
        await agent.generate_response([HELLO])


async def test_outside_an_episode_nothing_is_recorded_and_an_answer_still_comes() -> None:
    agent = await stub_agent()
    assert current_recorder() is None
    assert await agent.generate_response([HELLO]) == "One."


async def test_a_history_that_carries_on_keeps_the_tokens_that_were_seen_and_sampled() -> None:
    agent = await stub_agent()
    recorder = EpisodeRecorder("c", seed=0)
    with recording(recorder):
        history = [HELLO]
        answer = await agent.generate_response(history)
        history += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Go on."}]
        await agent.generate_response(history)
    first, second = recorder.samples
    seen = first.prompt_token_ids + first.token_ids
    assert second.prompt_token_ids[: len(seen)] == seen
    assert second.prompt_token_ids == tuple(agent.tokenizer.render(history))


async def test_an_answer_cut_off_is_carried_on_as_it_was_sampled_not_as_it_would_be_tokenised() -> (
    None
):
    # "é" is two bytes; four tokens cut it in half, and no text can give the half back.
    agent = await stub_agent(responses=["Cafés are fine."], max_new_tokens=4)
    recorder = EpisodeRecorder("c", seed=0)
    with recording(recorder):
        answer = await agent.generate_response([HELLO])
        assert answer == "Caf\ufffd"
        history = [HELLO, {"role": "assistant", "content": answer}, HELLO]
        await agent.generate_response(history)
    first, second = recorder.samples
    seen = (*first.prompt_token_ids, *b"Caf\xc3")
    assert second.prompt_token_ids[: len(seen)] == seen
    assert second.prompt_token_ids != tuple(agent.tokenizer.render(history))


async def test_an_answer_that_was_changed_is_rendered_anew() -> None:
    agent = await stub_agent()
    recorder = EpisodeRecorder("c", seed=0)
    with recording(recorder):
        answer = await agent.generate_response([HELLO])
        history = [HELLO, {"role": "assistant", "content": answer + " Sir."}, HELLO]
        await agent.generate_response(history)
    first, second = recorder.samples
    seen = first.prompt_token_ids + first.token_ids
    assert second.prompt_token_ids == tuple(agent.tokenizer.render(history))
    assert second.prompt_token_ids[: len(seen)] != seen


async def test_a_call_aside_does_not_break_the_thread_of_the_conversation() -> None:
    class DraftsFirst(MultiTurnAgent):
        async def generate_response(self, messages):  # type: ignore[no-untyped-def]
            draft = await super().generate_response(messages)
            await super().generate_response([{"role": "user", "content": f"Judge: {draft}"}])
            return draft

    # Cut in half, so that rendering the draft anew would give other tokens.
    agent = await stub_agent(DraftsFirst, responses=["Cafés are fine."], max_new_tokens=4)
    recorder = EpisodeRecorder("c", seed=0)
    with recording(recorder):
        answer = await agent.generate_response([HELLO])
        await agent.generate_response([HELLO, {"role": "assistant", "content": answer}, HELLO])
    draft, _, next_draft, _ = recorder.samples
    seen = draft.prompt_token_ids + draft.token_ids
    assert next_draft.prompt_token_ids[: len(seen)] == seen


def test_seeds_of_calls_differ_and_come_back() -> None:
    recorder = EpisodeRecorder("c", seed=7)
    seeds = [recorder.call_seed(call) for call in range(50)]
    assert len(set(seeds)) == 50
    assert seeds == [EpisodeRecorder("other", seed=7).call_seed(call) for call in range(50)]
    assert all(0 <= seed < 2**63 for seed in seeds)


async def test_one_seed_gives_one_answer_from_a_real_model(tiny_model_dir: Path) -> None:
    def config(seed: int) -> AgentConfig:
        return AgentConfig(
            model_name=str(tiny_model_dir), temperature=1.0, max_new_tokens=12, seed=seed
        )

    agent = MultiTurnAgent(config(seed=1))
    await agent.initialize()
    other = MultiTurnAgent(config(seed=2), engine=agent.engine)
    answers = [await agent.generate_response([HELLO]) for _ in range(2)]
    assert answers[0] == answers[1]
    assert await other.generate_response([HELLO]) != answers[0]
    await agent.engine.aclose()
