"""A continued conversation has the very tokens that the template renders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stateset_agents.exceptions import EngineError, ModelSourceError
from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.inference.engine import FinishReason
from stateset_agents.inference.loading import load_tokenizer
from stateset_agents.inference.stub_engine import ByteTokenizer
from tests.tiny_model import CHATML_TEMPLATE, make_tiny_tokenizer

LLAMA3_STYLE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n\n' + message['content'] | trim + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
GEMMA_STYLE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + ('model' if message['role'] == 'assistant' else message['role']) "
    "+ '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
MISTRAL_STYLE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
QWEN_STYLE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% set text = message['content'] %}"
    "{% if message['role'] == 'assistant' and '</think>' in text %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ text + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SYSTEM_IN_LAST_TURN = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ '<|im_start|>' }}{% if loop.last and messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] }}{% endif %}{{ message['content'] + '<|im_end|>' }}"
    "{% endif %}{% endfor %}"
)
USER = ("Where is my parcel?", "order 48213", "Thank you. Größer 🙂?")
ANSWERS = ("Could you please tell me your order number?", "It arrives on Thursday.\n\nBye.")


def tiny_with(template: str | None) -> ChatTokenizer:
    hf = make_tiny_tokenizer()
    hf.chat_template = template
    return ChatTokenizer(hf)


def say(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def play(
    tokenizer: ChatTokenizer, opening: Sequence[dict[str, Any]], reason: FinishReason, space: str
) -> tuple[list[int], list[int]]:
    """Play three user turns and two answers; the tokens that grew, and those of one rendering."""
    messages = [*opening, say("user", USER[0])]
    grown = tokenizer.render(messages)
    for answer, question in zip(ANSWERS, USER[1:], strict=True):
        sampled = tokenizer.encode(space + answer)
        if reason is FinishReason.STOP:
            sampled.append(tokenizer.hf.eos_token_id)
        new = [say("user", question)]
        grown += sampled + tokenizer.continuation(sampled, reason, new)
        messages += [say("assistant", answer), *new]
    return grown, tokenizer.render(messages)


@pytest.mark.parametrize("reason", list(FinishReason))
@pytest.mark.parametrize(
    ("template", "system"),
    [
        *((template, True) for template in (CHATML_TEMPLATE, LLAMA3_STYLE, QWEN_STYLE, None)),
        *((template, False) for template in (CHATML_TEMPLATE, LLAMA3_STYLE, QWEN_STYLE, None)),
        (GEMMA_STYLE, False),  # these two have no system message
        (MISTRAL_STYLE, False),
    ],
)
def test_prompt_answer_and_continuation_are_the_templates_rendering(
    template: str | None, system: bool, reason: FinishReason
) -> None:
    tokenizer = tiny_with(template)
    opening = [say("system", "Answer shortly.")] if system else []
    # The answer's own leading space: Mistral's template writes one before each answer.
    space = " " if template == MISTRAL_STYLE else ""
    grown, rendered = play(tokenizer, opening, reason, space)
    assert grown == rendered


@pytest.mark.parametrize("reason", list(FinishReason))
@pytest.mark.parametrize("system", [True, False])
def test_the_real_models_conversation_grows_as_its_template_renders_it(
    smollm2_dir: Path, system: bool, reason: FinishReason
) -> None:
    opening = [say("system", "Answer shortly.")] if system else []
    grown, rendered = play(load_tokenizer(smollm2_dir), opening, reason, "")
    assert grown == rendered


def test_sampled_tokens_are_kept_however_their_text_would_be_tokenised() -> None:
    tokenizer = tiny_with(CHATML_TEMPLATE)
    odd = [token for letter in "order number" for token in tokenizer.encode(letter)]
    assert odd != tokenizer.encode("order number")
    suffix = tokenizer.continuation(odd, FinishReason.LENGTH, [say("user", "Hi")])
    assert tokenizer.hf.decode(suffix) == (
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_stop_token_other_than_the_templates_stands_for_its_end_of_turn() -> None:
    hf = make_tiny_tokenizer()
    other = hf.convert_tokens_to_ids("<|endoftext|>")
    tokenizer = ChatTokenizer(hf, stop_token_ids=[other])
    assert tokenizer.stop_token_ids == {hf.eos_token_id, other}
    suffix = tokenizer.continuation([70, other], FinishReason.STOP, [say("user", "Hi")])
    assert tokenizer.hf.decode(suffix).startswith("\n<|im_start|>user")
    assert tokenizer.decode([70, other]) == tokenizer.decode([70])


def test_templates_that_rewrite_what_was_said_are_noticed() -> None:
    kept = (CHATML_TEMPLATE, LLAMA3_STYLE, GEMMA_STYLE, QWEN_STYLE, None)
    assert all(tiny_with(template).extends_history for template in kept)
    assert not tiny_with(SYSTEM_IN_LAST_TURN).extends_history


def test_a_template_that_refuses_or_hides_messages_says_so() -> None:
    with pytest.raises(EngineError, match=r"roles \[user, user\].*alternate"):
        tiny_with(GEMMA_STYLE).render([say("user", "a"), say("user", "b")])
    hides = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}"
    with pytest.raises(EngineError, match="does not show an assistant's message"):
        tiny_with(hides + "{% endfor %}")


def test_a_tokenizer_without_template_and_end_token_is_refused() -> None:
    hf = make_tiny_tokenizer()
    hf.chat_template = None
    hf.eos_token = None
    with pytest.raises(ModelSourceError, match="neither a chat template nor"):
        ChatTokenizer(hf)


def test_a_byte_tokenizer_is_tokenizer_enough() -> None:
    tokenizer = ChatTokenizer(ByteTokenizer())
    grown, rendered = play(tokenizer, [say("system", "Be kind.")], FinishReason.STOP, "")
    assert grown == rendered
    assert tokenizer.decode(tokenizer.encode("größer 🙂<|im_end|>")) == "größer 🙂"
