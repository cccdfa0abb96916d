"""The only place where text becomes tokens, and tokens text.

Owns the chat template: rendering a conversation, and continuing one after an answer was sampled
without making that answer's tokens a second time. It knows no model and imports neither torch nor
transformers; any object with the three methods of `TemplateTokenizer` will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from stateset_agents.exceptions import EngineError, ModelSourceError
from stateset_agents.inference.engine import FinishReason

DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize + ':\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
"""For tokenizers that come without a template (gpt2): the role on its own line, the text, and the
end-of-text token as end of turn, so that a model without special chat tokens can learn to stop."""

UNFINISHED_CHARACTER = "\ufffd"
"""What tokenizers make of bytes that are no whole character (U+FFFD)."""

# Stands for a sampled answer while the text that follows it is rendered. Plain letters and digits:
# no template strips, escapes or splits it.
_ANSWER = "StandIn7c41f0Answer"
_OPENING = {"role": "user", "content": "x"}

Message = Mapping[str, Any]


class TemplateTokenizer(Protocol):
    """What is asked of a tokenizer; those of transformers have it."""

    chat_template: Any
    eos_token: Any
    eos_token_id: Any
    pad_token_id: Any

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render messages as text (`tokenize=False`)."""
        ...

    def encode(self, text: Any, **options: Any) -> Any:
        """Text to ids; `add_special_tokens=False` adds none."""
        ...

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """Ids to text; `skip_special_tokens=True` leaves those out."""
        ...


class ChatTokenizer:
    """A tokenizer with its chat template, and with the tokens that end an answer.

    Args:
        hf: the tokenizer; kept as `.hf`. Without a chat template it gets `DEFAULT_CHAT_TEMPLATE`.
        stop_token_ids: further tokens that end an answer (a generation config names some); the
            tokenizer's end-of-sequence token and the template's end of turn always do.

    Raises:
        ModelSourceError: there is neither a template nor an end-of-sequence token, or the template
            does not show an assistant's message.
    """

    def __init__(self, hf: TemplateTokenizer, stop_token_ids: Sequence[int] = ()) -> None:
        self.hf: Any = hf
        if not hf.chat_template:
            if hf.eos_token is None:
                raise ModelSourceError(
                    "The tokenizer has neither a chat template nor an end-of-sequence token. "
                    "Set its eos_token, or give it a chat_template, and save it again."
                )
            hf.chat_template = DEFAULT_CHAT_TEMPLATE
        self._takes_system = self._find_takes_system()
        self._turn_end = self._find_turn_end()
        stops = {int(token) for token in stop_token_ids}
        if hf.eos_token_id is not None:
            stops.add(int(hf.eos_token_id))
        if self._turn_end and self.is_special(self._turn_end[0]):
            stops.add(self._turn_end[0])
        if not stops:
            raise ModelSourceError(
                "No token ends an answer: the tokenizer has no end-of-sequence token and the "
                "template closes an assistant's message with ordinary text. Set its eos_token."
            )
        self._stop_token_ids = frozenset(stops)
        pad = hf.pad_token_id if hf.pad_token_id is not None else hf.eos_token_id
        self._pad_token_id = int(pad) if pad is not None else min(stops)

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """The tokens that end an answer; sampling one finishes a generation."""
        return self._stop_token_ids

    @property
    def pad_token_id(self) -> int:
        """The id that fills a row; the end-of-sequence token where there is no padding token."""
        return self._pad_token_id

    @property
    def extends_history(self) -> bool:
        """True when a longer conversation's rendering starts with the shorter one's.

        False for templates that rewrite what was said: that move the system message to the last
        user turn, or drop an earlier answer's reasoning. With those, `continuation` keeps what the
        model really saw, and a fresh `render` of the same conversation differs.
        """
        first = [{"role": "system", "content": "s"}, _OPENING]
        try:
            before = self._text(first, add_generation_prompt=True)
        except EngineError:  # no system messages in this template
            first = [_OPENING]
            before = self._text(first, add_generation_prompt=True)
        answered = [*first, {"role": "assistant", "content": _ANSWER}]
        later = self._text([*answered, _OPENING], add_generation_prompt=True)
        return later.startswith(before + _ANSWER)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Render a conversation, `(T,)` ids, ready for the next answer. A system message that the
        template does not take stands at the beginning of the first user message.

        Raises:
            EngineError: the template refuses these messages (roles out of order, for example).
        """
        return self.encode(self._text(messages, add_generation_prompt=add_generation_prompt))

    def continuation(
        self,
        sampled_token_ids: Sequence[int],
        finish_reason: FinishReason,
        new_messages: Sequence[Message],
    ) -> list[int]:
        """The ids to append to `prompt + sampled` so that the model can answer `new_messages`.

        It holds what the template writes after an answer: the end of turn unless it was sampled
        (cut off by LENGTH), whatever follows it, the new messages and the generation prompt. The
        sampled ids are never made again, so the whole equals the template's rendering wherever the
        sampled text encodes to the sampled ids. A sampled stop token other than the template's own
        end of turn stands in its place.

        Raises:
            EngineError: the template refuses the messages, or hides an assistant's message.
        """
        answered: list[Message] = [_OPENING, {"role": "assistant", "content": _ANSWER}]
        text = self._text([*answered, *new_messages], add_generation_prompt=True)
        suffix = self.encode(self._after_answer(text))
        ended = (
            finish_reason is FinishReason.STOP
            and len(sampled_token_ids) > 0
            and sampled_token_ids[-1] in self._stop_token_ids
        )
        if not ended:
            return suffix
        for index, token in enumerate(self._turn_end):
            if token in self._stop_token_ids and suffix[index] == token:
                return suffix[index + 1 :]
        return suffix

    def encode(self, text: str) -> list[int]:
        """Text to `(T,)` ids; special tokens written in the text become single ids, none added."""
        return [int(token) for token in self.hf.encode(text, add_special_tokens=False)]

    def encode_answer(self, text: str) -> list[int]:
        """An assistant's words to `(T,)` ids as if they had been sampled after a generation prompt:
        the template's end of turn, or else the end of the sequence, is the last of them.
        """
        end = self._turn_end[:1]
        if not end or end[0] not in self._stop_token_ids:
            end = [min(self._stop_token_ids)]
        return [*self.encode(text), *end]

    def decode(self, token_ids: Sequence[int], shown_ids: frozenset[int] = frozenset()) -> str:
        """Ids to text, without special tokens but for `shown_ids` and without the end of turn. Ids
        that were cut off within a character end in `UNFINISHED_CHARACTER`.
        """
        ids = list(token_ids)
        while ids and ids[-1] in self._stop_token_ids:
            ids.pop()
        return self.decode_as_is(ids, shown_ids)

    def decode_as_is(
        self, token_ids: Sequence[int], shown_ids: frozenset[int] = frozenset()
    ) -> str:
        """Ids to text, without special tokens but for `shown_ids`; a part of a character is
        `UNFINISHED_CHARACTER`.
        """
        ids = list(token_ids)
        for place, token in enumerate(ids):
            if token in shown_ids:
                tag: str = self.hf.decode([token], skip_special_tokens=False)
                before = self.decode_as_is(ids[:place])
                return before + tag + self.decode_as_is(ids[place + 1 :], shown_ids)
        text: str = self.hf.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def is_special(self, token: int) -> bool:
        """True for a token that decoding leaves out: no ordinary text contains it."""
        return bool(self.hf.decode([token], skip_special_tokens=True) == "")

    def _find_takes_system(self) -> bool:
        """False for a template that refuses a system message (Gemma's) or leaves it out."""
        conversation = [{"role": "system", "content": _ANSWER}, _OPENING]
        try:
            text = str(self.hf.apply_chat_template(conversation, tokenize=False))
        except Exception:  # templates raise what they like: here it is the answer
            return False
        return _ANSWER in text

    def _placed(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """What the template gets: where it takes no system message, its text begins the user's."""
        given = [dict(message) for message in messages]
        if self._takes_system or [one.get("role") for one in given[:2]] != ["system", "user"]:
            return given
        system, user, *rest = given
        return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]

    def _find_turn_end(self) -> list[int]:
        answered: list[Message] = [_OPENING, {"role": "assistant", "content": _ANSWER}]
        return self.encode(self._after_answer(self._text(answered, add_generation_prompt=False)))

    @staticmethod
    def _after_answer(text: str) -> str:
        head, found, tail = text.partition(_ANSWER)
        if not found:
            raise EngineError(
                "The chat template does not show an assistant's message, so a conversation cannot "
                f"be continued after one. It rendered: {head[:200]!r}. Use another chat template."
            )
        return tail

    def _text(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        try:
            text: str = self.hf.apply_chat_template(
                self._placed(messages),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # templates raise what they like: attribute it
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise EngineError(
                f"The chat template refused messages with the roles [{roles}]: {error}"
            ) from error
        return text
