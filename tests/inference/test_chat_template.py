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
from tests.chat_styles import STYLES, make_styled_tokenizer
from tests.tiny_model import CHATML_TEMPLATE, make_tiny_tokenizer

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
            sampled.append(tokenizer.encode_answer("")[-1])
        new = [say("user", question)]
        grown += sampled + tokenizer.continuation(sampled, reason, new)
        messages += [say("assistant", answer), *new]
    return grown, tokenizer.render(messages)


@pytest.mark.parametrize("reason", list(FinishReason))
@pytest.mark.parametrize(
    ("name", "system"),
    [
        *((name, False) for name in STYLES),
        *((name, True) for name, style in STYLES.items() if style.has_system),
    ],
)
def test_prompt_answer_and_continuation_are_the_templates_rendering(
    name: str, system: bool, reason: FinishReason
) -> None:
    tokenizer = make_styled_tokenizer(STYLES[name])
    opening = [say("system", "Answer shortly.")] if system else []
    grown, rendered = play(tokenizer, opening, reason, STYLES[name].answer_start)
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
    extends = {name: make_styled_tokenizer(style).extends_history for name, style in STYLES.items()}
    # Mistral's moves the system message, and puts a space before an answer.
    assert extends == {name: name != "mistral" for name in STYLES}


def test_a_template_that_refuses_or_hides_messages_says_so() -> None:
    with pytest.raises(EngineError, match=r"roles \[user, user\].*alternate"):
        make_styled_tokenizer(STYLES["gemma"]).render([say("user", "a"), say("user", "b")])
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


def test_a_system_message_begins_the_users_where_a_template_takes_none() -> None:
    tokenizer = make_styled_tokenizer(STYLES["gemma"])
    asked = [say("system", "Think first."), say("user", USER[0])]
    folded = [say("user", f"Think first.\n\n{USER[0]}")]

    assert tokenizer.render(asked) == tokenizer.render(folded)


def test_other_orders_of_roles_are_still_refused() -> None:
    tokenizer = make_styled_tokenizer(STYLES["gemma"])

    with pytest.raises(EngineError, match="refused"):
        tokenizer.render([say("system", "Think first."), say("assistant", "Yes.")])
