"""Server-sent events: an answer as OpenAI's chat completion chunks, while it is being sampled.

Owns the form of the chunks. It does not know how answers are made.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from stateset_agents.exceptions import StateSetError
from stateset_agents.serving.answer import Answer
from stateset_agents.serving.refusals import as_request_error

DONE = "data: [DONE]\n\n"


def event(value: Any) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def chunk(head: dict[str, Any], delta: dict[str, str], finish_reason: str | None = None) -> str:
    """One chunk with what the message has gained."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
    return event({**head, "choices": [choice]})


async def answer_events(
    answer: Answer, head: dict[str, Any], *, with_usage: bool
) -> AsyncGenerator[str, None]:
    """An answer as events, piece by piece as it is sampled; a failure is an event with an `error`.

    Args:
        answer: what is being said.
        head: what every chunk says beside what was gained.
        with_usage: end with the number of tokens; every chunk before says `"usage": null` then, and
            without it none has the field.
    """
    if with_usage:
        head = {**head, "usage": None}
    try:
        yield chunk(head, {"role": "assistant", "content": ""})
        while (piece := await answer.next_piece()) is not None:
            yield chunk(head, {"content": piece})
        yield chunk(head, {}, answer.finish_reason)
        if with_usage:
            yield event({**head, "choices": [], "usage": answer.usage})
        yield DONE
    except StateSetError as error:
        yield event(as_request_error(error).body())
