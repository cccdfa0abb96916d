"""One answer under way: sampled in a task of its own, heard piece by piece, ended early.

Owns the life of an answer (begun, told to stop, failed, ended) and the count of its tokens. An
answer ends with the first of its stop texts, or when nobody wants it any more: then nothing more is
computed, and the engine's slot is free. It knows neither HTTP nor which version speaks.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from stateset_agents.core.recorder import EpisodeRecorder, recording
from stateset_agents.inference.engine import (
    Engine,
    FinishReason,
    GenerationRequest,
    GenerationResult,
    OnToken,
)
from stateset_agents.serving.stop_scanner import StopScanner

if TYPE_CHECKING:
    import torch

    from stateset_agents.core.agent import MultiTurnAgent
    from stateset_agents.inference.chat_template import ChatTokenizer
    from stateset_agents.serving.protocol import ChatRequest


class MeteredEngine:
    """An engine as one answer uses it: counts what goes in and what is sampled.

    Attributes:
        prompt_tokens: of all calls so far.
        answer_tokens: sampled so far, those of a call that was ended early included.
        finish_reason: of the last call that ended by itself.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.prompt_tokens = 0
        self.answer_tokens = 0
        self.finish_reason: FinishReason | None = None

    @property
    def tokenizer(self) -> ChatTokenizer:
        """The engine's."""
        return self._engine.tokenizer

    @property
    def max_context_tokens(self) -> int:
        """The engine's."""
        return self._engine.max_context_tokens

    async def generate(
        self, request: GenerationRequest, on_token: OnToken | None = None
    ) -> GenerationResult:
        """Sample as the engine does, and count.

        Raises:
            ContextLengthError: prompt and `max_new_tokens` exceed `max_context_tokens`.
            EngineError: the engine is closed, or the model failed.
        """
        self.prompt_tokens += len(request.prompt_token_ids)

        def hear(token_id: int) -> None:
            self.answer_tokens += 1
            if on_token is not None:
                on_token(token_id)

        result = await self._engine.generate(request, hear)
        self.finish_reason = result.finish_reason
        return result

    def release(self, conversation_id: str) -> None:
        """As the engine does."""
        self._engine.release(conversation_id)

    def update_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """As the engine does."""
        self._engine.update_weights(weights)

    async def aclose(self) -> None:
        """Nothing: the engine belongs to everybody's answers."""


class _StopTextError(Exception):
    """A stop text was sampled: ends the generation from within."""


class Answer:
    """What is being said to one request; made within an event loop, and sampled from then on.

    Args:
        agent: who speaks; its engine is shared with other answers.
        request: what is answered, and how.

    Attributes:
        id: names the answer, and the engine's cache of its conversation.
    """

    def __init__(self, agent: MultiTurnAgent, request: ChatRequest) -> None:
        self.id = secrets.token_hex(12)
        self._meter = MeteredEngine(agent.engine)
        self._scanner = StopScanner(request.stop_texts)
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self._first: str | None = None  # taken from the line, and not given out yet
        self._said = ""
        self._failure: Exception | None = None
        self._task = asyncio.create_task(self._sample(agent, request))
        self._task.add_done_callback(self._ended)

    def on_end(self, callback: Callable[[Answer], None]) -> None:
        """Call back when nothing more is sampled, for whatever reason."""
        self._task.add_done_callback(lambda _: callback(self))

    async def begun(self) -> None:
        """Wait for the first piece of text, which stays to be had, or for the end.

        Raises what `next_piece` raises.
        """
        first = await self.next_piece()
        if first is not None:
            self._first = first

    async def next_piece(self) -> str | None:
        """The next piece of text; None when that was all. Pieces end within no stop text.

        Raises:
            ContextLengthError: conversation and answer do not fit the model.
            EngineError: generation failed.
            Exception: what it was told to `fail` with.
        """
        if self._first is not None:
            first, self._first = self._first, None
            return first
        piece = await self._pieces.get()
        if piece is None:
            self._pieces.put_nowait(None)  # asked again, the answer is the same
            await self._outcome()
        return piece

    async def whole(self) -> str:
        """The answer's text, once it has ended. Raises what `next_piece` raises."""
        text = await self._outcome()
        return self._said if self._scanner.found else text

    def stop(self) -> None:
        """Compute no further; one that has ended stays as it is. Whoever waits is cancelled."""
        self._task.cancel()

    def fail(self, error: Exception) -> None:
        """Compute no further, and raise this to whoever waits for the rest."""
        if not self._task.done():
            self._failure = error
            self._task.cancel()

    @property
    def finish_reason(self) -> str:
        """In OpenAI's words, once the answer has ended."""
        by_itself = self._meter.finish_reason is FinishReason.STOP
        return "stop" if by_itself or self._scanner.found else "length"

    @property
    def usage(self) -> dict[str, int]:
        """Tokens read and sampled so far; those of a stop text included, none after it."""
        prompt_tokens, answer_tokens = self._meter.prompt_tokens, self._meter.answer_tokens
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": answer_tokens,
            "total_tokens": prompt_tokens + answer_tokens,
        }

    async def _sample(self, agent: MultiTurnAgent, request: ChatRequest) -> str:
        asked = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "max_new_tokens": request.answer_tokens,
        }
        settings = {name: value for name, value in asked.items() if value is not None}
        speaker = agent.speaking_through(self._meter, **settings)
        seed = secrets.randbits(63) if request.seed is None else request.seed
        text = ""
        with recording(EpisodeRecorder(self.id, seed)):
            try:
                messages = [message.as_chat() for message in request.messages]
                text = await speaker.respond(messages, self._hear)
            except _StopTextError:
                pass
            finally:
                speaker.release(self.id)
        self._tell(self._scanner.finish())
        return text

    def _hear(self, piece: str) -> None:
        self._tell(self._scanner.feed(piece))
        if self._scanner.found:
            raise _StopTextError

    def _tell(self, text: str) -> None:
        if text:
            self._said += text
            self._pieces.put_nowait(text)

    def _ended(self, task: asyncio.Task[str]) -> None:
        if not task.cancelled():
            task.exception()  # looked at: there may be nobody left to raise it to
        self._pieces.put_nowait(None)

    async def _outcome(self) -> str:
        # shielded: that one who waits goes away is not the answer's end; `stop` is
        try:
            return await asyncio.shield(self._task)
        except asyncio.CancelledError:
            if self._failure is not None and self._task.cancelled():
                raise self._failure from None
            raise
