"""Fitting a conversation into fewer tokens: what is kept, to the token.

Owns the three strategies and the budget that each keeps. It does not know when a context has to be
compressed, nor how a summary is sampled: the agent decides the one and does the other.

What every strategy keeps: the system message that the conversation starts with, and everything from
the last user message on. Lengths are those of the rendered conversation, generation prompt
included, so they are what the model sees.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from stateset_agents.core.trajectory import Message
from stateset_agents.inference.chat_template import ChatTokenizer

CompressionStrategy = Literal["summary", "truncate", "sliding_window"]
Summarise = Callable[[list[Message], int], Awaitable[str]]
"""Messages that ask for a summary, and the most tokens that it may have, to its text."""

# Under this many tokens a summary says nothing; the window alone is kept then.
SHORTEST_SUMMARY = 8
_REQUEST = (
    "Summarise the following conversation between a user and an assistant in a few sentences. "
    "Keep names, numbers, what the user wants, and what was agreed.\n\n"
)
_SUMMARY_TITLE = "The conversation so far: "
# Before an assistant's message that would otherwise come first: templates insist on a user there.
_LEFT_OUT: Message = {"role": "user", "content": "[...]"}


def slide(messages: Sequence[Message], tokenizer: ChatTokenizer, budget: int) -> list[Message]:
    """`sliding_window`: the newest whole messages, from a user message on, within `budget` tokens.

    What must be kept is kept even if it alone exceeds the budget.
    """
    head, middle, tail = _parts(messages)
    for start, message in enumerate(middle):
        candidate = [*head, *middle[start:], *tail]
        if message["role"] == "user" and length(candidate, tokenizer) <= budget:
            return candidate
    return [*head, *tail]


def truncate(messages: Sequence[Message], tokenizer: ChatTokenizer, budget: int) -> list[Message]:
    """`truncate`: the newest tokens, `budget` of them; the oldest message that is kept may have
    lost its beginning.
    """
    head, middle, tail = _parts(messages)
    start = len(middle)
    while start and length(_opened(head, middle[start - 1 :], tail), tokenizer) <= budget:
        start -= 1
    whole = _opened(head, middle[start:], tail)
    if start == 0:
        return whole
    cut = middle[start - 1]
    tokens = tokenizer.encode(cut["content"])

    def with_last(count: int) -> list[Message]:
        # half of a character decodes to U+FFFD
        text = tokenizer.decode(tokens[len(tokens) - count :]).lstrip("\ufffd")
        return _opened(head, [{**cut, "content": text}, *middle[start:]], tail)

    fewest, most = 0, len(tokens)
    while fewest < most:
        count = (fewest + most + 1) // 2
        if length(with_last(count), tokenizer) <= budget:
            fewest = count
        else:
            most = count - 1
    return with_last(fewest) if fewest else whole


async def summarise(
    messages: Sequence[Message],
    tokenizer: ChatTokenizer,
    budget: int,
    ask: Summarise,
    *,
    max_request_tokens: int,
) -> list[Message]:
    """`summary`: the newest messages in half of the budget, a summary of the others in the rest.

    The summary stands at the end of the system message, or before the first user message that is
    kept where there is none. It is `ask`ed of the model, with a request of `max_request_tokens` at
    most: what is older than that is not part of it. Where the budget leaves it fewer than
    `SHORTEST_SUMMARY` tokens, the window is all that is kept.
    """
    kept = slide(messages, tokenizer, budget // 2)
    head, middle, _ = _parts(messages)
    older = middle[: len(messages) - len(kept)]
    room = budget - length(_with_summary(kept, "", len(head)), tokenizer)
    if not older or room < SHORTEST_SUMMARY:
        return slide(messages, tokenizer, budget)
    words = tokenizer.encode(await ask(summary_request(older, tokenizer, max_request_tokens), room))
    while True:
        # a text may encode to more tokens than were sampled for it
        text = tokenizer.decode(words).rstrip("\ufffd").strip()
        compressed = _with_summary(kept, text, len(head))
        excess = length(compressed, tokenizer) - budget
        if excess <= 0 or not words:
            return compressed
        words = words[: max(0, len(words) - excess)]


def length(messages: Sequence[Message], tokenizer: ChatTokenizer) -> int:
    """Tokens of the rendered conversation, ready for the next answer."""
    return len(tokenizer.render(messages))


def summary_request(
    messages: Sequence[Message], tokenizer: ChatTokenizer, max_tokens: int
) -> list[Message]:
    """One user message that asks for a summary of `messages`, within `max_tokens` tokens; the
    oldest words are left out where they do not fit.
    """
    transcript = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    tokens = tokenizer.encode(transcript)
    while True:
        text = tokenizer.decode(tokens).lstrip("\ufffd")
        request: list[Message] = [{"role": "user", "content": _REQUEST + text}]
        excess = length(request, tokenizer) - max_tokens
        if excess <= 0 or not tokens:
            return request
        tokens = tokens[excess:]


def _parts(
    messages: Sequence[Message],
) -> tuple[list[Message], list[Message], list[Message]]:
    """Head and tail, which are kept, and what lies between."""
    head = list(messages[:1]) if messages and messages[0]["role"] == "system" else []
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    last = users[-1] if users else len(messages)
    return head, list(messages[len(head) : last]), list(messages[last:])


def _opened(
    head: Sequence[Message], middle: Sequence[Message], tail: Sequence[Message]
) -> list[Message]:
    opening = [_LEFT_OUT] if middle and middle[0]["role"] != "user" else []
    return [*head, *opening, *middle, *tail]


def _with_summary(kept: Sequence[Message], summary: str, num_head: int) -> list[Message]:
    told = f"{_SUMMARY_TITLE}{summary}"
    first = kept[0]
    content = f"{first['content']}\n\n{told}" if num_head else f"{told}\n\n{first['content']}"
    return [{**first, "content": content}, *kept[1:]]
