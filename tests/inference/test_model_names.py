"""A model's name leads to its folder: by its path, in one folder of models, or on the hub."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.exceptions import ModelSourceError
from stateset_agents.inference.loading import load_model, load_tokenizer, resolve_attention
from stateset_agents.inference.model_names import local_model_folder, model_folder

HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def models(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models with `gpt2` and `org/model`, and no other."""
    folder = tmp_path / "models"
    for name in ("gpt2", "org/model"):
        shutil.copytree(tiny_model_dir, folder / name)
    monkeypatch.setenv("STATESET_MODELS_DIR", str(folder))
    return folder


def test_a_name_is_looked_for_as_a_path_before_the_folder_of_models(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model_folder("gpt2") == models / "gpt2"
    assert model_folder("org/model") == models / "org/model"
    assert model_folder(str(models / "gpt2")) == models / "gpt2"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert model_folder("gpt2") == Path("gpt2")


def test_model_and_tokenizer_load_by_name(models: Path) -> None:
    assert load_model("gpt2").config.num_hidden_layers == 2
    assert load_tokenizer("org/model").stop_token_ids


async def test_an_agent_speaks_with_the_model_of_a_name(models: Path) -> None:
    agent = MultiTurnAgent(AgentConfig(model_name="gpt2", max_new_tokens=4, device_map="cpu"))
    await agent.initialize()
    assert isinstance(await agent.generate_response(HELLO), str)
    await agent.engine.aclose()


def test_a_name_that_is_nowhere_says_where_it_was_looked_for(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert local_model_folder("llama-7b") is None
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelSourceError) as caught:
        model_folder("llama-7b")
    told = str(caught.value)
    assert "model 'llama-7b': http://127.0.0.1:9 does not answer" in told
    assert "there is none at llama-7b" in told
    assert f"{models} (STATESET_MODELS_DIR) has no folder of that name" in told
    monkeypatch.delenv("STATESET_MODELS_DIR")
    with pytest.raises(ModelSourceError, match="STATESET_MODELS_DIR is not set"):
        model_folder("llama-7b")


def test_a_path_is_never_asked_of_the_hub(tmp_path: Path) -> None:
    for path in ("/nowhere/gpt2", "./gpt-nowhere", "a/b/c", str(tmp_path / "gpt2")):
        assert local_model_folder(path) == Path(path)


async def test_what_this_machine_cannot_follow_is_told_in_one_warning(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = AgentConfig(
        model_name="gpt2",
        device_map="auto",
        attn_implementation="flash_attention_2",
        max_new_tokens=4,
        torch_dtype="bfloat16",
    )
    with caplog.at_level(logging.WARNING, logger="stateset_agents"):
        agent = MultiTurnAgent(config)
        await agent.initialize()
        await agent.initialize()
        await agent.generate_response(HELLO)
        await agent.engine.aclose()
    assert [record.getMessage() for record in caplog.records] == [
        'device_map="auto" found no CUDA device; using the CPU; '
        'attn_implementation="flash_attention_2" needs a CUDA device; using "sdpa"'
    ]


async def test_defaults_are_followed_without_a_word(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="stateset_agents"):
        agent = MultiTurnAgent(AgentConfig(model_name="gpt2"))
        await agent.initialize()
        await agent.engine.aclose()
    assert not caplog.records


def test_attention_is_the_one_that_was_asked_for(models: Path) -> None:
    for name in ("eager", "sdpa"):
        chosen, told = resolve_attention(name, "cpu", torch.float32)  # type: ignore[arg-type]
        assert (chosen, told) == (name, None)
        loaded = load_model("gpt2", attn_implementation=chosen)
        assert loaded.config._attn_implementation == name
    chosen, told = resolve_attention("flash_attention_2", "cpu", torch.float32)
    assert chosen == "sdpa"
    assert told is not None
    assert "a CUDA device and bfloat16 or float16 instead of float32" in told
