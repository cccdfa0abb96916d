"""Chat templates of the common families, written down in short, and a model that speaks in them.

Owns a tokenizer for each style with the style's own special tokens, and the chain model: a real
Llama whose weights are a table of which token follows which. What it says is known beforehand, so a
whole conversation can be compared with the template's rendering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM

from stateset_agents.inference.chat_template import ChatTokenizer
from tests.tiny_model import CHATML_TEMPLATE, make_tiny_tokenizer

LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN3_TEMPLATE = (
    "{% set place = namespace(last_question=-1) %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% set place.last_question = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% set text = message['content'] %}"
    "{% if message['role'] == 'assistant' %}"
    "{% set thought = '' %}"
    "{% if '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > place.last_question %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{% endif %}"
    "{{ text + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' }}"
    "{{ message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# The system message stands in the last question, as in the third version of this family.
MISTRAL_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system, said = messages[0]['content'] + '\n\n', messages[1:] %}"
    "{% else %}{% set system, said = '', messages %}{% endif %}"
    "{% set place = namespace(last_question=-1) %}"
    "{% for message in said %}{% if message['role'] == 'user' %}"
    "{% set place.last_question = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in said %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + (system if loop.index0 == place.last_question else '') }}"
    "{{ message['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
DEEPSEEK_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '<|User|>' + message['content'] }}"
    "{% else %}{{ '<|Assistant|>' + message['content'].split('</think>')[-1].lstrip('\n') }}"
    "{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class ChatStyle:
    """How one family writes conversations.

    Attributes:
        template: None for a tokenizer that comes without one.
        special_tokens: its own, which never occur in ordinary text.
        bos: the token in front of a conversation, if the family has one.
        eos: the tokenizer's end of sequence, which is not always what ends a turn.
        after_stop: what the template writes after the token that ends a turn.
        answer_start: what the template writes between generation prompt and answer, so that a
            model trained on it samples it.
        last_answer_start: what the template writes before the last answer only, whatever the model
            was given to answer after: nothing that a model sees while it samples.
        has_system: the template takes a system message and leaves it where it was.
    """

    template: str | None
    special_tokens: tuple[str, ...] = ()
    bos: str | None = None
    eos: str = "<|im_end|>"
    after_stop: str = "\n"
    answer_start: str = ""
    last_answer_start: str = ""
    has_system: bool = True


STYLES = {
    "chatml": ChatStyle(CHATML_TEMPLATE),
    "llama 3": ChatStyle(
        LLAMA3_TEMPLATE,
        (
            *("<|begin_of_text|>", "<|end_of_text|>"),
            *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        after_stop="",
    ),
    "qwen 3": ChatStyle(QWEN3_TEMPLATE, last_answer_start="<think>\n\n</think>\n\n"),
    "gemma": ChatStyle(
        GEMMA_TEMPLATE,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        has_system=False,
    ),
    "mistral": ChatStyle(
        MISTRAL_TEMPLATE,
        ("<s>", "</s>", "[INST]", "[/INST]"),
        bos="<s>",
        eos="</s>",
        after_stop="",
        answer_start=" ",
        has_system=False,
    ),
    "deepseek": ChatStyle(
        DEEPSEEK_TEMPLATE,
        ("<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>"),
        bos="<|begin|>",
        eos="<|end|>",
        after_stop="",
    ),
    "none": ChatStyle(None, eos="<|endoftext|>"),
}


def make_styled_tokenizer(style: ChatStyle) -> ChatTokenizer:
    """The tiny tokenizer with the style's special tokens and template.

    `<think>` and `</think>` are single tokens of ordinary text, as in the families that think.
    """
    hf = make_tiny_tokenizer()
    hf.add_tokens([AddedToken(token, special=True) for token in style.special_tokens])
    hf.add_tokens([AddedToken(token, special=False) for token in ("<think>", "</think>")])
    hf.bos_token, hf.eos_token, hf.pad_token = style.bos, style.eos, style.eos
    hf.chat_template = style.template
    return ChatTokenizer(hf)


def write_chain_model(
    folder: Path, tokenizer: ChatTokenizer, answers: Sequence[Sequence[int]]
) -> Path:
    """Write a Llama that, asked anything, says one of `answers`, each as likely as the others.

    An answer's last token is a stop token. The model knows the last token only: where two answers
    share one, it goes on as in either.
    """
    opening = tokenizer.render([{"role": "user", "content": "?"}])[-1]
    followers: dict[int, set[int]] = {opening: {answer[0] for answer in answers}}
    for answer in answers:
        for token, following in pairwise(answer):
            followers.setdefault(token, set()).add(following)
    vocabulary, width = len(tokenizer.hf), 512
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.hf.eos_token_id,
        bos_token_id=tokenizer.hf.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model: Any = LlamaForCausalLM(config)
    with torch.no_grad():
        for weights in (
            model.model.layers[0].self_attn.o_proj.weight,
            model.model.layers[0].mlp.down_proj.weight,
            model.model.embed_tokens.weight,
        ):
            weights.zero_()
        # One dimension a token; the last norm lifts it to the square root of the width.
        model.model.embed_tokens.weight.fill_diagonal_(1.0)
        model.lm_head.weight.fill_(0.0)
        for token, following in followers.items():
            model.lm_head.weight[list(following), token] = 60.0 / width**0.5
    model.save_pretrained(folder)
    tokenizer.hf.save_pretrained(folder)
    return folder
