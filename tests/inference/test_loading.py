"""Models are loaded whole or refused with a reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from stateset_agents.exceptions import ModelSourceError
from stateset_agents.inference.loading import (
    has_native_bfloat16,
    load_model,
    load_tokenizer,
    resolve_dtype,
)


@pytest.fixture
def copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))


def test_a_model_is_loaded_for_inference_in_the_format_asked_for(tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir, dtype="bfloat16")
    assert model.dtype is torch.bfloat16
    assert not model.training
    assert model.config._attn_implementation == "sdpa"


def test_auto_is_bfloat16_where_the_processor_has_it() -> None:
    expected = torch.bfloat16 if has_native_bfloat16() else torch.float32
    assert resolve_dtype("auto") is expected
    assert resolve_dtype("float32") is torch.float32
    with pytest.raises(ModelSourceError, match="'int4' is not known; use one of auto, bfloat16"):
        resolve_dtype("int4")  # type: ignore[arg-type]


def test_a_truncated_weight_file_is_named(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelSourceError, match=r"model\.safetensors is truncated"):
        load_model(copy)


def test_a_folder_without_config_or_weights_is_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="nowhere is not a folder"):
        load_model(tmp_path / "nowhere")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelSourceError, match="no \\*\\.safetensors file"):
        load_model(copy)
    (copy / "config.json").unlink()
    with pytest.raises(ModelSourceError, match=r"has no config\.json"):
        load_model(copy)


def test_weights_that_the_config_asks_for_must_be_there(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelSourceError, match=r"lacks 1 of the weights.*up_proj"):
        load_model(copy)


def test_a_broken_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(ModelSourceError, match="no tokenizer that can be read"):
        load_tokenizer(copy)
