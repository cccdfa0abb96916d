"""GGUF (the format of llama.cpp) to a model folder with safetensors.

Owns one conversion. A GGUF file is one file with weights, configuration, vocabulary and chat
template; transformers dequantises it, and what is saved is a plain model that remembers nothing
of its quantised past.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stateset_agents.exceptions import ModelSourceError


def convert_gguf(gguf: Path, model: Path, *, dtype: str, source: str) -> None:
    """Write the model in `gguf` to the new folder `model`, weights in `dtype`.

    Raises:
        ModelSourceError: the file is damaged, or of an architecture that transformers cannot read.
    """
    with _quiet_transformers():
        loaded, tokenizer = _load(gguf, dtype, source)
        # saving must write plain weights: with these in place it would write GGUF blocks
        if hasattr(loaded.config, "quantization_config"):
            del loaded.config.quantization_config
        loaded.hf_quantizer = None
        for name in ("_model_name_or_path", "_name_or_path"):
            vars(loaded.config).pop(name, None)
        tokenizer.model_max_length = loaded.config.max_position_embeddings
        for key in ("is_local", "local_files_only"):  # how it was read, not what it is
            tokenizer.init_kwargs.pop(key, None)
        loaded.save_pretrained(model)
        tokenizer.save_pretrained(model)


def _load(gguf: Path, dtype: str, source: str) -> tuple[Any, Any]:
    import torch
    import transformers

    # Whatever a damaged file makes the reader raise, it means the same here.
    try:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=getattr(torch, dtype),
            quantization_config=transformers.GgufConfig(dequantize=True),
        )
        # with the config at hand, the file's vocabulary is not parsed another time (3 s)
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, config=loaded.config
        )
    except Exception as error:
        raise ModelSourceError(
            f"base model {source}: {gguf.name} cannot be converted ({type(error).__name__}: "
            f"{error}); it is damaged, or of an architecture that transformers does not read"
        ) from error
    return loaded, tokenizer


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Its bars and notes would be the only lines of this step that are not ours."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    showed_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        # with HF_HUB_DISABLE_PROGRESS_BARS set, asking for them would be a warning
        if showed_bars and not os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
            logging.enable_progress_bar()
