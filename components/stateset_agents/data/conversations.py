"""One reading of a conversation for all formats: who speaks, what they say, what is odd about it.

Owns the names that chat formats give to speakers. It knows no files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stateset_agents.exceptions import DataError

SPEAKERS = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "customer": "user",
    "prompter": "user",
    "assistant": "assistant",
    "agent": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_call": "tool",
    "observation": "tool",
    "ipython": "tool",
}
_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant): ?")


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation in our terms: an optional system text, then user and assistant in turns.

    `all` is the list of messages; `greeting` is what the assistant said before the first user turn
    (not in `all` when a user turn follows it), `tool_messages` counts those left out.
    """

    all: list[dict[str, str]]
    greeting: str = ""
    tool_messages: int = 0

    @property
    def system(self) -> str:
        """What the system said, "" if nothing."""
        return "\n".join(one["content"] for one in self.all if one["role"] == "system")

    @property
    def user_turns(self) -> list[str]:
        """What the user said, turn by turn."""
        return [one["content"] for one in self.all if one["role"] == "user"]

    @property
    def answers(self) -> list[str]:
        """What the assistant answered, turn by turn."""
        return [one["content"] for one in self.all if one["role"] == "assistant"]


def read_conversation(messages: Sequence[dict[str, Any]]) -> Conversation:
    """Read messages of any chat format.

    Raises:
        DataError: a speaker that is not known, a message without text, a system message in the
            middle. Each problem begins with the index, so that the caller can put a place before.
    """
    problems: list[str] = []
    turns: list[dict[str, str]] = []
    tool_messages = 0
    for index, message in enumerate(messages):
        raw = str(message.get("role") or message.get("from") or "")
        role = SPEAKERS.get(raw.lower())
        if role is None:
            problems.append(
                f"[{index}]: role {raw!r} is not known; allowed are {', '.join(sorted(SPEAKERS))}"
            )
            continue
        if role == "tool" or message.get("tool_calls") or message.get("function_call"):
            tool_messages += 1
            continue
        text = _text(message)
        if not text:
            problems.append(f"[{index}]: found an empty {role} turn; allowed is some text")
        elif role == "system" and any(turn["role"] != "system" for turn in turns):
            problems.append(f"[{index}]: role 'system' is out of place; allowed is the beginning")
        elif turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n{text}"
        else:
            turns.append({"role": role, "content": text})
    if problems:
        raise DataError(problems)
    return _without_greeting(turns, tool_messages)


def split_transcript(text: str) -> list[dict[str, str]]:
    """Messages of a Human/Assistant transcript (paragraphs); [] if it is none. A last
    `Assistant:` without words, which asks for the answer, is left out.
    """
    pieces = _TRANSCRIPT.split(f"\n\n{text.strip()}")
    if len(pieces) < 3 or pieces[0].strip():
        return []
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": words.strip()}
        for speaker, words in zip(pieces[1::2], pieces[2::2], strict=True)
        if words.strip()
    ]


def _without_greeting(turns: list[dict[str, str]], tool_messages: int) -> Conversation:
    start = next((n for n, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    rest = turns[start:]
    if len(rest) > 1 and rest[0]["role"] == "assistant":
        return Conversation(turns[:start] + rest[1:], rest[0]["content"], tool_messages)
    return Conversation(turns, "", tool_messages)


def _text(message: dict[str, Any]) -> str:
    content = message.get("content", message.get("value", message.get("text")))
    if isinstance(content, list):
        parts = [part.get("text", "") if isinstance(part, dict) else str(part) for part in content]
        content = "\n".join(part for part in parts if part)
    return content.strip() if isinstance(content, str) else ""
