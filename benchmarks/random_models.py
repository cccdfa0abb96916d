"""Models with random weights, by shape: speed does not depend on what weights say."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes; heads are 64 wide unless said otherwise."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    positions: int = 8192


SMALL = Shape("small", hidden=256, layers=8, heads=4, kv_heads=2, intermediate=768)
# Those of Qwen2.5-0.5B and 1.5B, with the base model's vocabulary.
HALF_BILLION = Shape("0.5B", hidden=896, layers=24, heads=14, kv_heads=2, intermediate=4864)
ONE_AND_A_HALF_BILLION = Shape(
    "1.5B", hidden=1536, layers=28, heads=12, kv_heads=2, intermediate=8960
)


def write_model(shape: Shape, folder: Path, *, tokenizer: Path) -> Path:
    """Write a bfloat16 model of that shape with the tokenizer of another folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

    base = AutoConfig.from_pretrained(tokenizer, local_files_only=True)
    config = LlamaConfig(
        vocab_size=base.vocab_size,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        bos_token_id=base.bos_token_id,
        eos_token_id=base.eos_token_id,
        pad_token_id=base.pad_token_id,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, folder / name)
    return folder
