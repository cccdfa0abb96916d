"""What a scenario, a message and a preference pair are.

Owns the shape of the data and nothing else: files are read in `readers`, other people's formats
become these in `importers`, and how much of it there must be is the pipeline's own affair
(`data.config`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from stateset_agents.core.rubric import Rubric

Split = Literal["train", "validation", "heldout"]
Role = Literal["system", "user", "assistant"]

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]


class Message(BaseModel):
    """One message of a conversation, as every chat format writes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Role
    content: Text


class Scenario(BaseModel):
    """One conversation to be had: what the user says, and what a good assistant does.

    The user's turns are fixed; the assistant answers each of them. `context` is the policy excerpt
    that the assistant is given. `split` is decided by the intent (`data.splits`) and is None in a
    source file. `model_dump()` is the dict that environments and rewards see.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Name
    topic: Name
    intent: Name
    user_responses: tuple[Text, ...] = Field(min_length=1)
    context: str = ""
    rubric: Rubric | None = None
    split: Split | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _rubric_fits_the_turns(self) -> Self:
        for number, item in enumerate(self.rubric.items if self.rubric else ()):
            if item.turn is not None and item.turn >= len(self.user_responses):
                raise ValueError(
                    f"rubric.items[{number}].turn is {item.turn}, and the scenario has the "
                    f"turns 0 to {len(self.user_responses) - 1}"
                )
        return self


class PreferencePair(BaseModel):
    """Two answers to the same conversation, in TRL's conversational format.

    `prompt` is an optional system message, then user and assistant in turns, and ends with the
    user. `chosen` and `rejected` continue it: they begin with the assistant.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Name
    prompt: tuple[Message, ...] = Field(min_length=1)
    chosen: tuple[Message, ...] = Field(min_length=1)
    rejected: tuple[Message, ...] = Field(min_length=1)
    topic: Name | None = None
    intent: Name | None = None
    split: Split | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _roles_and_difference(self) -> Self:
        problems = role_problems("prompt", self.prompt, first="user", last="user")
        for key in ("chosen", "rejected"):
            answer: tuple[Message, ...] = getattr(self, key)
            problems += role_problems(key, answer, first="assistant", last="assistant")
        if _words(self.chosen) == _words(self.rejected):
            problems.append("chosen equals rejected: a pair needs two different answers")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def role_problems(key: str, messages: tuple[Message, ...], *, first: Role, last: Role) -> list[str]:
    """What is wrong with the order of roles, one line for each message out of place.

    A system message may only open a conversation that begins with the user; after it, user and
    assistant alternate from `first` to `last`.
    """
    start = 1 if first == "user" and messages[0].role == "system" else 0
    problems = []
    expected = first
    for index, message in enumerate(messages[start:], start):
        if message.role != expected:
            problems.append(
                f"{key}[{index}].role is {message.role!r} out of place: allowed here is "
                f"{expected!r}"
            )
            expected = message.role
        expected = "user" if expected == "assistant" else "assistant"
    if messages[-1].role != last and not problems:
        problems.append(
            f"{key}[{len(messages) - 1}].role is {messages[-1].role!r} out of place: "
            f"{key} ends with {last!r}"
        )
    return problems


def _words(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(message.role, " ".join(message.content.split())) for message in messages]
