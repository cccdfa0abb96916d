"""An engine that answers at once with given texts: for dry runs, without torch.

Owns `StubEngine` and the byte tokenizer that it speaks. It samples nothing: the same calls in the
same order give the same answers.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from stateset_agents.exceptions import ConfigurationError, ContextLengthError, EngineError
from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.inference.engine import (
    FinishReason,
    GenerationRequest,
    GenerationResult,
    OnToken,
)

if TYPE_CHECKING:
    import torch

_SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>")
_SPECIAL_PATTERN = re.compile("(" + "|".join(map(re.escape, _SPECIAL_TOKENS)) + ")")

DEFAULT_RESPONSES = (
    "Thank you for your message. Could you please tell me your order number?",
    "I understand. Let me look into this for you.",
    "Is there anything else that I can help you with?",
)


class ByteTokenizer:
    """UTF-8 bytes as token ids 0 to 255, then `<|im_start|>` (256) and `<|im_end|>` (257)."""

    chat_template = "chatml"
    eos_token = "<|im_end|>"
    eos_token_id = 257
    pad_token_id = 257
    vocab_size = 258

    def apply_chat_template(
        self, conversation: Any, *, add_generation_prompt: bool = False, **_: Any
    ) -> str:
        """Render messages as ChatML text."""
        parts = [
            f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
            for message in conversation
        ]
        return "".join(parts) + ("<|im_start|>assistant\n" if add_generation_prompt else "")

    def encode(self, text: str, **_: Any) -> list[int]:
        """Text to ids."""
        ids: list[int] = []
        for part in _SPECIAL_PATTERN.split(text):
            if part in _SPECIAL_TOKENS:
                ids.append(256 + _SPECIAL_TOKENS.index(part))
            else:
                ids.extend(part.encode())
        return ids

    def decode(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool = False, **_: Any
    ) -> str:
        """Ids to text; a broken UTF-8 sequence becomes U+FFFD."""
        pieces = b"".join(
            bytes([token])
            if token < 256
            else b""
            if skip_special_tokens
            else _SPECIAL_TOKENS[token - 256].encode()
            for token in token_ids
        )
        return pieces.decode(errors="replace")


class StubEngine:
    """The Engine protocol over a fixed list of answers, given in turn.

    Every token gets the log-prob of a uniform choice among the byte tokenizer's ids, so that what
    is recorded has the shape and the sign of the real thing.

    Args:
        responses: the answers, used one after the other and then again from the first; empty or
            None means three polite ones.
        max_context_tokens: the most tokens (bytes) of a prompt and its answer.

    Raises:
        ConfigurationError: a response that is not a text.
    """

    def __init__(
        self, responses: Sequence[str] | None = None, *, max_context_tokens: int = 32768
    ) -> None:
        self._responses = tuple(responses) if responses else DEFAULT_RESPONSES
        wrong = [item for item in self._responses if not isinstance(item, str)]
        if isinstance(responses, str) or wrong:
            found = wrong[0] if wrong else responses
            raise ConfigurationError(f"stub_responses must be a list of texts; found {found!r}.")
        self._tokenizer = ChatTokenizer(ByteTokenizer())
        self._max_context_tokens = max_context_tokens
        self._calls = 0
        self._closed = False

    @property
    def tokenizer(self) -> ChatTokenizer:
        """Bytes with a ChatML template."""
        return self._tokenizer

    @property
    def max_context_tokens(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        return self._max_context_tokens

    async def generate(
        self, request: GenerationRequest, on_token: OnToken | None = None
    ) -> GenerationResult:
        """Answer with the next response, cut to `max_new_tokens`, a byte a token.

        Raises:
            ContextLengthError: prompt and `max_new_tokens` exceed `max_context_tokens`.
            EngineError: the engine is closed.
        """
        if self._closed:
            raise EngineError("The engine is closed; make a new one to generate.")
        asked = len(request.prompt_token_ids) + request.sampling.max_new_tokens
        if asked > self._max_context_tokens:
            raise ContextLengthError(
                f"A prompt of {len(request.prompt_token_ids)} tokens and max_new_tokens "
                f"{request.sampling.max_new_tokens} exceed the context of "
                f"{self._max_context_tokens} tokens. Shorten the conversation or the answer."
            )
        text = self._responses[self._calls % len(self._responses)]
        self._calls += 1
        ids = [*self._tokenizer.encode(text), ByteTokenizer.eos_token_id]
        kept = tuple(ids[: request.sampling.max_new_tokens])
        reason = FinishReason.STOP if len(kept) == len(ids) else FinishReason.LENGTH
        if on_token is not None:
            for token in kept:
                on_token(token)
                await asyncio.sleep(0)
        logprob = -math.log(ByteTokenizer.vocab_size)
        return GenerationResult(kept, (logprob,) * len(kept), reason)

    def release(self, conversation_id: str) -> None:
        """Nothing is kept, so nothing is forgotten."""

    def update_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Refuse: answers that are given have no weights.

        Raises:
            EngineError: any weight was passed.
        """
        names = [name for name, _ in weights]
        if names:
            raise EngineError(
                f"The stub engine has no parameter named {names[0]!r}; it gives fixed answers. "
                "Train with a real model."
            )

    async def aclose(self) -> None:
        """Refuse further requests; closing twice is fine."""
        self._closed = True
