"""Preferences in the forms that people have them in, as pairs or as rated answers.

Owns which forms are taken and what is wrong with one that is not. Files are read in `readers`; what
is learned from preferences is `training`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from stateset_agents.data.schemas import Message, PreferencePair
from stateset_agents.exceptions import DataError

# Stands for the question of a pair that was given without one.
NO_QUESTION = "(no question was given)"

_FORMS = (
    'allowed are {"prompt", "chosen", "rejected"} (texts, or lists of messages as TRL has them), a '
    "PreferencePair, (better, worse), (prompt, better, worse), and rated answers "
    '{"prompt", "completion", "label"}'
)
_MAX_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class RatedAnswer:
    """An answer that somebody found good or bad, by itself.

    Attributes:
        messages: the conversation up to and with the answer; any roles that the model's chat
            template knows.
        label: 1 for good, 0 for bad, or a number between.
        conversation: answers with the same name here are of one conversation, and are never shared
            out between training and measuring.
    """

    messages: tuple[dict[str, Any], ...]
    label: float
    conversation: str

    @property
    def answer_length(self) -> int:
        """Characters of the answer."""
        return len(str(self.messages[-1]["content"]))


def parse_preferences(given: Iterable[Any]) -> list[PreferencePair] | list[RatedAnswer]:
    """Read all of one kind, pairs or rated answers; see the message of its error for the forms.

    A text is a message: of the user in a prompt, of the assistant in an answer. Two conversations
    that begin alike become a pair with that beginning as its prompt.

    Raises:
        DataError: up to twenty lines, one for each that is in no form, or that mixes the kinds.
    """
    if isinstance(given, str | bytes | Mapping):
        raise DataError(
            f"preference data is {type(given).__name__}, and a list of pairs is needed: {_FORMS}"
        )
    found: list[PreferencePair | RatedAnswer] = []
    problems: list[str] = []
    for number, item in enumerate(given):
        try:
            found.append(_parse(item, number))
        except (ValueError, TypeError, KeyError) as error:
            problems.append(f"preference {number}: {_reason(error)}")
    kinds = {type(one) for one in found}
    if len(kinds) > 1:
        rated = sum(isinstance(one, RatedAnswer) for one in found)
        problems.append(
            f"{rated} of {len(found)} preferences are rated answers and the others pairs: a reward "
            "is learned from one kind"
        )
    if not found and not problems:
        problems.append(f"there are no preferences: {_FORMS}")
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        raise DataError(
            problems[:_MAX_PROBLEMS] + ([f"... and {more} more like these"] if more > 0 else [])
        )
    return found  # type: ignore[return-value]


def _parse(item: Any, number: int) -> PreferencePair | RatedAnswer:
    if isinstance(item, PreferencePair | RatedAnswer):
        return item
    if isinstance(item, Mapping):
        if {"chosen", "rejected"} <= item.keys():
            return _pair_of_mapping(item, number)
        if {"completion", "label"} <= item.keys():
            return _rated(item, number)
        raise ValueError(f"found the keys {sorted(map(str, item))}; {_FORMS}")
    if isinstance(item, Sequence) and not isinstance(item, str) and len(item) in (2, 3):
        prompt, better, worse = item if len(item) == 3 else (None, *item)
        return _pair(f"pair-{number}", prompt, better, worse)
    raise ValueError(f"found {_shown(item)}; {_FORMS}")


def _pair_of_mapping(item: Mapping[str, Any], number: int) -> PreferencePair:
    keys = ("id", "topic", "intent", "split", "metadata")
    more = {key: item[key] for key in keys if item.get(key) is not None}
    name = str(more.pop("id", f"pair-{number}"))
    return _pair(name, item.get("prompt"), item["chosen"], item["rejected"], **more)


def _pair(name: str, prompt: Any, better: Any, worse: Any, **more: Any) -> PreferencePair:
    chosen, rejected = _messages(better, "assistant"), _messages(worse, "assistant")
    asked = [] if prompt is None or prompt == "" else _messages(prompt, "user")
    if not asked:
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        asked, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    return PreferencePair(
        id=name,
        prompt=tuple(asked) or (Message(role="user", content=NO_QUESTION),),
        chosen=tuple(chosen),
        rejected=tuple(rejected),
        **more,
    )


def _messages(given: Any, role: str) -> list[Message]:
    if isinstance(given, str):
        return [Message.model_validate({"role": role, "content": given})]
    if not isinstance(given, Sequence):
        raise TypeError(f"found {_shown(given)} where a text or a list of messages belongs")
    return [one if isinstance(one, Message) else Message.model_validate(one) for one in given]


def _rated(item: Mapping[str, Any], number: int) -> RatedAnswer:
    label = item["label"]
    if not isinstance(label, int | float) or not math.isfinite(label) or not 0 <= label <= 1:
        raise ValueError(f"label is {label!r}; true or false, or a number from 0 to 1, is allowed")
    messages = [*_any_messages(item.get("prompt"), "user")]
    messages += _any_messages(item["completion"], "assistant")
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError("completion does not end with a message of the assistant, who is rated")
    conversation = item.get("conversation_id")
    if conversation is None:
        # answers to one prompt belong together
        conversation = json.dumps(messages[:-1], sort_keys=True, default=str)
    return RatedAnswer(tuple(messages), float(label), str(conversation))


def _any_messages(given: Any, role: str) -> list[dict[str, Any]]:
    if given is None or given == "":
        return []
    if isinstance(given, str):
        return [{"role": role, "content": given}]
    messages = [one.model_dump() if isinstance(one, Message) else dict(one) for one in given]
    for message in messages:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise ValueError(f"found the message {_shown(message)}; role and content are texts")
    return messages


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(
            ".".join(str(part) for part in one["loc"]) + f": {one['msg']}".removeprefix(": ")
            for one in error.errors(include_url=False)
        ).removeprefix(": ")
    return str(error)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
