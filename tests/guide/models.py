"""The models that pages name, small: folders of two layers under the names that a page writes.

Owns which names there are. `gpt2` is a real GPT-2 without a chat template, `llama-7b` a Llama,
`mistral-7b` a Mistral.
"""

from __future__ import annotations

from pathlib import Path

from tests.tiny_model import make_tiny_model, make_tiny_tokenizer


def make_models_dir(folder: Path) -> Path:
    """A folder for `STATESET_MODELS_DIR`: every name that the pages use."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

    make_tiny_model(folder / "llama-7b")
    tokenizer = make_tiny_tokenizer()
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": len(tokenizer),
        "initializer_range": 0.1,
        "dtype": "float32",
    }
    mistral = MistralConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        sliding_window=None,
        **ends,
    )
    gpt2 = GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=2048, **ends)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        MistralForCausalLM(mistral).save_pretrained(folder / "mistral-7b")
        GPT2LMHeadModel(gpt2).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "mistral-7b")
    without_template = make_tiny_tokenizer()
    without_template.chat_template = None
    without_template.save_pretrained(folder / "gpt2")
    return folder
