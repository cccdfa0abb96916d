"""OpenAI's chat completions protocol, as far as this server speaks it.

Owns the form of requests, answers and errors. What is not supported is refused by name: a field
that were ignored would be answered wrongly. It does not know HTTP servers nor models.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

# Fields of OpenAI's schema that this server would have to ignore, with the values that ask for
# nothing and are therefore fine.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0, 0.0),
    "presence_penalty": (None, 0, 0.0),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "audio": (None,),
    "modalities": (None, ["text"]),
}
# The same of a message: an answer of OpenAI's that is sent back as it came has most of them.
_NEUTRAL_OF_MESSAGES: dict[str, tuple[Any, ...]] = {
    "name": (None,),
    "refusal": (None,),
    "audio": (None,),
    "annotations": (None, []),
    "tool_calls": (None, []),
    "function_call": (None,),
}
# Fields that say nothing about the answer.
_HARMLESS = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


def _without_neutral(values: Any, neutral: dict[str, tuple[Any, ...]]) -> Any:
    if not isinstance(values, dict):
        return values
    return {
        name: value
        for name, value in values.items()
        if not (name in neutral and value in neutral[name])
    }


def _characters_only(text: str) -> str:
    # JSON can write half of a character (`\\ud83d` alone), which no tokenizer takes
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("found half of a surrogate pair; allowed are whole characters")
    return text


Text = Annotated[str, AfterValidator(_characters_only)]


class TextPart(BaseModel):
    """A part of a message's content; only text."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: Text


class RequestMessage(BaseModel):
    """One message of a request; `developer` is OpenAI's newer word for `system`."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, values: Any) -> Any:
        return _without_neutral(values, _NEUTRAL_OF_MESSAGES)

    def as_chat(self) -> dict[str, str]:
        """As chat templates want it."""
        parts = self.content if isinstance(self.content, list) else None
        text = "".join(part.text for part in parts) if parts is not None else str(self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    """What a streamed answer says beside its text."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions. None = the version's own setting."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: list[RequestMessage] = Field(min_length=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: Literal[1] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, values: Any) -> Any:
        kept = _without_neutral(values, _NEUTRAL)
        if not isinstance(kept, dict):
            return kept
        return {name: value for name, value in kept.items() if name not in _HARMLESS}

    @field_validator("stop")
    @classmethod
    def _stop_is_up_to_four_texts(cls, stop: str | list[str] | None) -> str | list[str] | None:
        texts = [stop] if isinstance(stop, str) else stop or []
        if len(texts) > 4 or not all(texts):
            raise ValueError("give up to 4 texts, none of them empty")
        return stop

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true; set it, or leave it out")
        return self

    @property
    def stop_texts(self) -> list[str]:
        """`stop` as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def wants_usage(self) -> bool:
        """True when a streamed answer is to end with the number of its tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def answer_tokens(self) -> int | None:
        """`max_completion_tokens`, or its older name."""
        return self.max_completion_tokens or self.max_tokens


def error_body(
    message: str, kind: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def explain_validation(problems: list[Any]) -> tuple[str, str | None]:
    """Pydantic's list of problems as a message, and the name of the first field concerned."""
    lines = []
    first: str | None = None
    for problem in problems:
        # the path starts with "body", and has the branch of a union in it, which is no field
        path = [part for part in problem["loc"] if part != "body"]
        path = [part for part in path if not str(part).startswith(("list[", "function-after["))]
        name = ".".join(str(part) for part in path) or "body"
        text = str(problem["msg"]).removeprefix("Value error, ")
        if problem["type"] == "json_invalid":
            # the path is a position there
            name = "body"
            text = f"not JSON: {problem['ctx']['error']} at character {path[0]}"
        elif problem["type"] == "extra_forbidden":
            text = "this server does not support this field"
        first = first or name
        lines.append(f"{name}: {text}")
    return "; ".join(dict.fromkeys(lines)), first
