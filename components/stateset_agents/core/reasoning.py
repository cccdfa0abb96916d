"""A model's thoughts, kept apart from what it says.

Owns where thoughts begin and end in a text, and how a model is asked for them. It does not know
tokens but for reading them, nor who may see thoughts and who may not: the agent decides that.

A thought stands between two tags, most often `<think>` and `</think>` (DeepSeek-R1, 2025,
arXiv:2501.12948). Read from left to right: an opening tag begins a thought, the next closing tag
ends it, and what is outside of thoughts is the answer. A thought that is not closed, because the
answer was cut off or the model ended in it, goes to the end: nothing of it is answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.inference.text_stream import TextStream

ReasoningTags = tuple[str, str]
DEFAULT_TAGS: ReasoningTags = ("<think>", "</think>")


@dataclass(frozen=True, slots=True)
class Spoken:
    """What was sampled, as text: the answer, and the thoughts, None where there were none."""

    answer: str
    reasoning: str | None = None


class ThoughtFilter:
    """Reads a text in pieces and lets through what is answer.

    Args:
        tags: what opens and what closes a thought.
        is_thinking: the text begins within a thought, because its prompt opened one.
    """

    def __init__(self, tags: ReasoningTags, *, is_thinking: bool = False) -> None:
        self._opening, self._closing = tags
        self._is_thinking = is_thinking
        self._thoughts: list[str] = [""] if is_thinking else []
        self._held = ""  # may be the beginning of a tag
        self._blank = ""  # space at the very beginning, which is dropped if a thought follows it
        self._has_spoken = False

    @property
    def reasoning(self) -> str | None:
        """The thoughts so far, without space around them; None where none was begun."""
        if not self._thoughts:
            return None
        return "\n\n".join(filter(None, (thought.strip() for thought in self._thoughts)))

    def feed(self, piece: str) -> str:
        """Take the next piece of text; the part of the answer that is certain now."""
        self._held += piece
        said = ""
        while True:
            tag = self._closing if self._is_thinking else self._opening
            before, found, after = self._held.partition(tag)
            if not found:
                break
            said += self._take(before)
            self._is_thinking = not self._is_thinking
            if self._is_thinking:
                self._thoughts.append("")
            self._held = after
        certain = len(self._held) - _beginning_of(tag, self._held)
        said += self._take(self._held[:certain])
        self._held = self._held[certain:]
        return said

    def finish(self) -> str:
        """The rest of the answer, once the text has ended."""
        said = self._take(self._held)
        self._held = ""
        if self._thoughts or self._has_spoken:
            return said
        return self._blank + said

    def _take(self, text: str) -> str:
        if self._is_thinking:
            self._thoughts[-1] += text
            return ""
        if self._has_spoken:
            return text
        self._blank += text
        if not self._blank.strip():
            return ""
        said = self._blank.lstrip() if self._thoughts else self._blank
        self._has_spoken = True
        return said


class SpokenStream:
    """Turns tokens into the answer's text as they are sampled.

    Args:
        prompt: `(P,)` ids that are continued.
        tokenizer: the model's.
        tags: of thoughts; None where they are not told apart.
        tell: gets each piece of the answer.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        tokenizer: ChatTokenizer,
        tags: ReasoningTags | None,
        tell: Callable[[str], None],
    ) -> None:
        self._text = TextStream(tokenizer, tag_ids(tokenizer, tags))
        self._thoughts = _filter_for(prompt, tokenizer, tags)
        self._tell = tell

    def hear(self, token_id: int) -> None:
        """Take the next token."""
        piece = self._text.add(token_id)
        if self._thoughts is not None:
            piece = self._thoughts.feed(piece)
        if piece:
            self._tell(piece)

    def finish(self) -> None:
        """The answer has ended: tell what was held back."""
        rest = self._thoughts.finish() if self._thoughts is not None else ""
        if rest:
            self._tell(rest)


def read_spoken(
    prompt: Sequence[int],
    token_ids: Sequence[int],
    tokenizer: ChatTokenizer,
    tags: ReasoningTags | None,
) -> Spoken:
    """What the sampled ids `(T,)` say after the prompt `(P,)`; all is answer if `tags` is None."""
    text = tokenizer.decode(token_ids, tag_ids(tokenizer, tags))
    thoughts = _filter_for(prompt, tokenizer, tags)
    if thoughts is None:
        return Spoken(text)
    answer = thoughts.feed(text)
    answer += thoughts.finish()
    return Spoken(answer, thoughts.reasoning)


def _filter_for(
    prompt: Sequence[int], tokenizer: ChatTokenizer, tags: ReasoningTags | None
) -> ThoughtFilter | None:
    """A prompt that ends with an opening tag, as that of DeepSeek-R1's template does, has the model
    begin within a thought.
    """
    if tags is None:
        return None
    # more than enough ids for the tag and the line feeds after it
    ending = list(prompt[-(len(tags[0]) + 8) :])
    text = tokenizer.decode_as_is(ending, tag_ids(tokenizer, tags))
    return ThoughtFilter(tags, is_thinking=text.rstrip().endswith(tags[0]))


def tag_ids(tokenizer: ChatTokenizer, tags: ReasoningTags | None) -> frozenset[int]:
    """The ids of tags that are special tokens, which decoding would leave out."""
    spelled = [tokenizer.encode(tag) for tag in tags or ()]
    return frozenset(ids[0] for ids in spelled if len(ids) == 1 and tokenizer.is_special(ids[0]))


def instruction(tokenizer: ChatTokenizer, tags: ReasoningTags) -> str:
    """What a system prompt has to say so that a model thinks first; "" for a model whose template
    knows the tags, because it was trained to.
    """
    opening, closing = tags
    if closing in str(tokenizer.hf.chat_template):
        return ""
    return (
        f"Think before you answer: write your reasoning between {opening} and {closing}, and the "
        "answer after it. Only the answer is shown to the user."
    )


def _beginning_of(tag: str, text: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    return next(
        (
            count
            for count in range(min(len(tag) - 1, len(text)), 0, -1)
            if text.endswith(tag[:count])
        ),
        0,
    )
