"""The border of this room: token ids in, token ids and log-probs out.

Owns the engine protocol and the values that cross it. It does not know conversations, rewards or
training; text becomes tokens in `chat_template.py`, and nowhere else.

Notation: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from stateset_agents.inference.chat_template import ChatTokenizer


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"  # a stop token was sampled; it is the last of `token_ids`
    LENGTH = "length"  # `max_new_tokens` were sampled


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample one answer.

    `temperature` 0 means greedy. `top_k` 0 and `top_p` 1.0 mean off. `seed` alone decides the
    random numbers of this request, so that a sample does not depend on its batch.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to continue.

    `conversation_id` names the KV cache to keep for the conversation's next turn: the engine reuses
    the longest common prefix of what it holds under that name. None keeps nothing.
    `group_id` names requests that share their first prompt, so it is computed once for all.
    """

    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    conversation_id: str | None = None
    group_id: str | None = None


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """What was sampled, `(T,)` ids with the log-prob of each.

    `logprobs` are of the distribution at the request's temperature over the whole vocabulary,
    before top-k and top-p cut it (the quantity that training recomputes); at temperature 0 they are
    those of temperature 1. The stop token, if one was sampled, is included.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


OnToken = Callable[[int], None]
"""Who listens to a generation while it goes on: gets the id of each token that was sampled."""


@runtime_checkable
class Engine(Protocol):
    """Asynchronous generation. Implementations: StubEngine, TransformersEngine, VLLMEngine."""

    @property
    def tokenizer(self) -> ChatTokenizer:
        """Text to tokens and back, chat template included."""
        ...

    @property
    def max_context_tokens(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        ...

    async def generate(
        self, request: GenerationRequest, on_token: OnToken | None = None
    ) -> GenerationResult:
        """Sample one continuation; many calls may wait at once and are batched.

        Args:
            request: what to continue and how.
            on_token: called with each sampled id, in order, as it comes and before the result is
                returned, on the caller's event loop. What it raises, this raises.

        Raises:
            ContextLengthError: prompt and `max_new_tokens` exceed `max_context_tokens`.
            EngineError: the engine is closed, or the model failed.
        """
        ...

    def release(self, conversation_id: str) -> None:
        """Forget a conversation's KV cache; unknown names are fine."""
        ...

    def update_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace parameters by name (those of the plain model, adapters merged in) and drop every
        cached key and value.

        Raises:
            EngineError: a name or shape that the model does not have; nothing was replaced.
        """
        ...

    async def aclose(self) -> None:
        """Fail what waits and free the memory; closing twice is fine."""
        ...
