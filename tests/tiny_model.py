"""A model small enough to test with: a real Llama folder, written on the spot, never downloaded.

Owns the tiny model and its tokenizer. The same arguments give the same bytes in every file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IM_START, IM_END = "<|im_start|>", "<|im_end|>"

# The same form as SmolLM2-Instruct's template, its habit of adding a system message included.
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a small test assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_SENTENCES = (
    "system user assistant",
    "Hello, my parcel has not arrived. Could you please check where it is?",
    "Of course. Could you please tell me your order number, so that I can look it up?",
    "The order number is 48213. I ordered two blue shirts and a lamp last week.",
    "Thank you. Your parcel left our warehouse on Monday and should arrive on Thursday.",
    "I want to return the lamp, it came broken. Can I have a refund?",
    "I am sorry about that. You can return it within 30 days, and the refund takes 5 days.",
    "What does the shipping cost? It is free above 50 euros, else it is 4 euros.",
    "You are a helpful assistant of an online shop. Answer shortly and politely.",
    "I cannot log in to my account. Please reset the password with the link in the mail.",
)


def make_tiny_tokenizer(vocab_size: int = 480) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on ten sentences; eos = pad = `<|im_end|>`.

    It encodes every text (all 256 bytes are tokens) and has a ChatML template.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", IM_START, IM_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<|endoftext|>",
        bos_token=IM_START,
        eos_token=IM_END,
        pad_token=IM_END,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML_TEMPLATE
    return tokenizer


def make_tiny_model(
    folder: Path | str,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    vocab_size: int = 480,
    max_positions: int = 2048,
) -> Path:
    """Write a float32 Llama (grouped-query attention, tied embeddings) for `from_pretrained`.

    The weights are random with a standard deviation of 0.1, wide enough that the next-token
    distribution is far from uniform and greedy choices have no ties. The global random state is
    left as it was.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(folder)
    tokenizer = make_tiny_tokenizer(vocab_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_gpt2(folder: Path | str, *, seed: int = 0) -> Path:
    """Write a float32 GPT-2 (learned positions, tied embeddings) with a tokenizer as GPT-2 has one:
    no chat template, no padding, and `<|endoftext|>` for everything else.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    trained = make_tiny_tokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained.backend_tokenizer,
        unk_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=1024,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
