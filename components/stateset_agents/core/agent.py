"""Agents: who answers a conversation.

Owns the base class, and the agent that speaks through an engine and records what it sampled. It
does not know environments, rewards or training; how a context is compressed is
`context_compression.py`'s, what is remembered `memory.py`'s, what is thought and not said
`reasoning.py`'s.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from stateset_agents import debug
from stateset_agents.core import context_compression
from stateset_agents.core.agent_config import AgentConfig, GenerationSettings
from stateset_agents.core.memory import ConversationMemory
from stateset_agents.core.reasoning import Spoken, SpokenStream, instruction, read_spoken
from stateset_agents.core.recorder import EpisodeRecorder, RecordedSample, current_recorder
from stateset_agents.core.trajectory import Message, TokenSample, to_messages
from stateset_agents.exceptions import ConfigurationError, DataError
from stateset_agents.inference.engine import (
    Engine,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
)

if TYPE_CHECKING:
    from stateset_agents.inference.chat_template import ChatTokenizer

__all__ = ["Agent", "AgentConfig", "GenerationSettings", "MultiTurnAgent"]

OnText = Callable[[str], None]
"""Who listens to an answer: gets its text, piece by piece."""

_log = logging.getLogger(__name__)


class Agent(ABC):
    """Base of all agents: a history of messages goes in, an answer comes out."""

    async def initialize(self) -> None:
        """Load what is needed; called once before the first answer. Nothing by default."""
        return None

    @abstractmethod
    async def generate_response(self, conversation_history: Sequence[Message]) -> str:
        """Answer a conversation, oldest message first."""

    def release(self, conversation_id: str) -> None:
        """Forget what is kept for a conversation that has ended. Nothing by default."""
        return None


class MultiTurnAgent(Agent):
    """An agent that speaks through an engine.

    Subclasses override `generate_response` and call `super()`: they may change the history before
    and the answer after. The environment and the rewards see the final text; training sees the
    tokens that were sampled. With `enable_reasoning` the final text is without the thoughts.

    Args:
        config: the model and how it speaks.
        engine: an engine that stands already; None lets `initialize` make one.
        memory: what was said in earlier conversations with the same user. Episodes read it and
            never write to it: a group's alternatives of one conversation did not happen.

    Raises:
        ConfigurationError: `config` is no `AgentConfig`.
    """

    def __init__(
        self,
        config: AgentConfig,
        engine: Engine | None = None,
        *,
        memory: ConversationMemory | None = None,
    ) -> None:
        given: Any = config
        if not isinstance(given, AgentConfig):
            raise ConfigurationError(
                f"an agent was given a {type(given).__name__} for its config; an AgentConfig is "
                "needed, as in AgentConfig(model_name=...)"
            )
        debug.apply()
        self.config = config
        self.memory = memory
        self._engine = engine

    async def initialize(self) -> None:
        """Make the engine, unless one was given; a second call does nothing.

        Raises:
            ConfigurationError: a device that is not there.
            ModelSourceError: the model cannot be loaded.
        """
        if self._engine is None:
            self._engine = make_engine(self.config)

    def with_own_engine(self, **settings: Any) -> Self:
        """An agent like this one, of its class and with its memory, whose engine is its own and
        made by `initialize`; `settings` change its config. This one stays as it is.

        Raises:
            ConfigurationError: settings that cannot work.
        """
        other = copy.copy(self)
        given = self.config.model_dump(exclude_unset=True)
        other.config = type(self.config)(**{**given, **settings})
        other._engine = None
        return other

    def speaking_through(self, engine: Engine, **settings: Any) -> Self:
        """An agent like this one, of its class and with its memory, that speaks through an engine
        which stands already; `settings` change its config as they are. This one stays as it is.
        """
        other = copy.copy(self)
        other.config = self.config.model_copy(update=settings)
        other._engine = engine
        return other

    @property
    def engine(self) -> Engine:
        """What generates.

        Raises:
            ConfigurationError: `initialize` was not awaited.
        """
        if self._engine is None:
            raise ConfigurationError(
                f"the agent of model {self.config.model_name!r} has no engine yet; "
                "call `await agent.initialize()` first, or give the agent an engine"
            )
        return self._engine

    @property
    def tokenizer(self) -> ChatTokenizer:
        """The engine's: text to tokens and back.

        Raises:
            ConfigurationError: `initialize` was not awaited.
        """
        return self.engine.tokenizer

    async def generate_response(self, conversation_history: Sequence[Message]) -> str:
        """Sample an answer to the messages, oldest first.

        Inside an episode the tokens go to the episode's recorder, the seed is the episode's, and a
        history that carries on from an earlier answer is not tokenised again. Outside, the seed is
        `config.seed` or a random one.

        Raises:
            ConfigurationError: `initialize` was not awaited.
            ContextLengthError: history and answer exceed the model's context.
            DataError: an entry of the history is not a message, or there is none to answer.
            EngineError: generation failed.
        """
        return await self._respond(conversation_history, None)

    async def stream_response(
        self, conversation_history: Sequence[Message]
    ) -> AsyncGenerator[str, None]:
        """Answer as `generate_response` does, and give the text piece by piece as it is sampled.

        No piece ends within a character, and all together are the answer (but for the half of a
        character in which one that is cut off may end). Whoever stops listening
        stops the generation. A subclass that overrides `generate_response` has the last word on an
        answer, so its answer comes in one piece unless it overrides this too.

        Raises:
            StateSetError: what `generate_response` raises, after the pieces that came before it.
        """
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        answering = asyncio.create_task(self.respond(conversation_history, pieces.put_nowait))
        answering.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            await answering
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)

    async def respond(self, conversation_history: Sequence[Message], on_text: OnText) -> str:
        """Answer as `generate_response` does, and tell `on_text` each piece of the text as soon as
        it is sampled; the pieces are those of `stream_response`.

        What `on_text` raises ends the generation there, before another token is computed (vLLM may
        be a few ahead), and is raised.

        Raises:
            StateSetError: what `generate_response` raises.
        """
        if type(self).generate_response is not MultiTurnAgent.generate_response:
            text = await self.generate_response(conversation_history)
            on_text(text)
            return text
        return await self._respond(conversation_history, on_text)

    async def _respond(
        self, conversation_history: Sequence[Message], on_text: OnText | None
    ) -> str:
        given = to_messages(conversation_history)
        history = self._with_system_prompt(given)
        recorder = current_recorder()
        if recorder is not None:
            return await self._respond_recorded(history, recorder, on_text)
        prompt = tuple(self.tokenizer.render(history))
        if self._is_too_long(prompt):
            prompt = await self._compressed(history, prompt, self._summarise)
        text = (await self._speak(prompt, on_text=on_text)).answer
        if self.memory is not None:
            self.memory.remember(given, text)
            await self.memory.condense(self._summarise, self.tokenizer, self._most_tokens())
        return text

    async def _respond_recorded(
        self, history: list[Message], recorder: EpisodeRecorder, on_text: OnText | None
    ) -> str:
        prompt = recorder.continued_prompt(history, self.tokenizer)
        if prompt is None:
            prompt = tuple(self.tokenizer.render(history))
        too_long = self._is_too_long(prompt)
        # numbered before anything is awaited; a summary that is not asked for leaves a gap
        summary_call = recorder.begin_call() if too_long else None
        call = recorder.begin_call()
        if summary_call is not None:

            async def summarise(request: list[Message], max_tokens: int) -> str:
                return await self._record_call(
                    recorder,
                    summary_call,
                    request,
                    tuple(self.tokenizer.render(request)),
                    max_new_tokens=max_tokens,
                )

            prompt = await self._compressed(history, prompt, summarise)
        return await self._record_call(
            recorder, call, history, prompt, in_conversation=True, on_text=on_text
        )

    async def _record_call(
        self,
        recorder: EpisodeRecorder,
        call: int,
        history: list[Message],
        prompt: tuple[int, ...],
        *,
        max_new_tokens: int | None = None,
        in_conversation: bool = False,
        on_text: OnText | None = None,
    ) -> str:
        """Sample, and keep what was seen and sampled under the messages that it answers.

        After a compression these are the whole history: what follows carries on from the compressed
        context, and a later one starts from the whole again.
        """
        turn = recorder.turn
        request = GenerationRequest(
            prompt_token_ids=prompt,
            sampling=self._sampling(recorder.call_seed(call), max_new_tokens),
            conversation_id=recorder.conversation_id if in_conversation else None,
            group_id=recorder.group_id if in_conversation else None,
        )
        result, spoken = await self._generate(request, on_text)
        sample = TokenSample(prompt, result.token_ids, result.logprobs, result.finish_reason, turn)
        recorder.end_call(
            call, RecordedSample(tuple(history), spoken.answer, sample, spoken.reasoning)
        )
        return spoken.answer

    async def _speak(
        self,
        prompt: tuple[int, ...],
        max_new_tokens: int | None = None,
        on_text: OnText | None = None,
    ) -> Spoken:
        """Outside an episode: nothing is recorded."""
        seed = secrets.randbits(63) if self.config.seed is None else self.config.seed
        request = GenerationRequest(prompt, self._sampling(seed, max_new_tokens))
        return (await self._generate(request, on_text))[1]

    async def _generate(
        self, request: GenerationRequest, on_text: OnText | None
    ) -> tuple[GenerationResult, Spoken]:
        """Sample, and read what was sampled; `on_text` gets the answer's text as it comes."""
        tags = self.config.reasoning_tags if self.config.enable_reasoning else None
        prompt = request.prompt_token_ids
        if on_text is None:
            result = await self.engine.generate(request)
        else:
            stream = SpokenStream(prompt, self.tokenizer, tags, on_text)
            result = await self.engine.generate(request, stream.hear)
            stream.finish()
        return result, read_spoken(prompt, result.token_ids, self.tokenizer, tags)

    # --- context ---------------------------------------------------------------------------------

    def _most_tokens(self) -> int:
        """Tokens before an answer from which on a context is compressed."""
        room = self.engine.max_context_tokens - self.config.max_new_tokens
        return max(1, min(room, self.config.max_context_tokens or room))

    def _is_too_long(self, prompt: tuple[int, ...]) -> bool:
        return self.config.enable_context_compression and len(prompt) > self._most_tokens()

    async def _compressed(
        self,
        history: list[Message],
        prompt: tuple[int, ...],
        summarise: context_compression.Summarise,
    ) -> tuple[int, ...]:
        """The tokens of the compressed history."""
        config, tokenizer = self.config, self.tokenizer
        budget = int(config.compression_ratio * min(len(prompt), self._most_tokens()))
        if config.compression_strategy == "summary":
            kept = await context_compression.summarise(
                history, tokenizer, budget, summarise, max_request_tokens=self._most_tokens()
            )
        elif config.compression_strategy == "truncate":
            kept = context_compression.truncate(history, tokenizer, budget)
        else:
            kept = context_compression.slide(history, tokenizer, budget)
        return tuple(tokenizer.render(kept))

    async def _summarise(self, request: list[Message], max_tokens: int) -> str:
        return (await self._speak(tuple(self.tokenizer.render(request)), max_tokens)).answer

    def release(self, conversation_id: str) -> None:
        """Free the engine's cache of a conversation; unknown names are fine."""
        if self._engine is not None:
            self._engine.release(conversation_id)

    def _with_system_prompt(self, history: list[Message]) -> list[Message]:
        """Put our system prompt, the request to think and what is remembered before the system
        message that the history starts with, if any.
        """
        config = self.config
        told = [
            config.system_prompt,
            instruction(self.tokenizer, config.reasoning_tags) if config.enable_reasoning else "",
            self.memory.recall(history) if self.memory is not None else "",
        ]
        parts = [part for part in told if part]
        if not parts:
            if not history:
                raise DataError(
                    "the history is empty and there is no system prompt: nothing to say"
                )
            return history
        if history and history[0]["role"] == "system":
            parts, history = [*parts, history[0]["content"]], history[1:]
        return [{"role": "system", "content": "\n\n".join(parts)}, *history]

    def _sampling(self, seed: int, max_new_tokens: int | None = None) -> SamplingParams:
        most = self.config.max_new_tokens
        return SamplingParams(
            max_new_tokens=min(max_new_tokens or most, most),
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            top_k=self.config.top_k,
            repetition_penalty=self.config.repetition_penalty,
            seed=seed,
        )


def make_engine(config: AgentConfig, *, own_thread: bool = False) -> Engine:
    """What `MultiTurnAgent.initialize` makes of a configuration.

    Args:
        config: the model and which engine.
        own_thread: as in `TransformersEngine`: True for a process that answers others meanwhile.

    Raises:
        ConfigurationError: a device that is not there.
        ModelSourceError: the model cannot be loaded.
    """
    # imported here, so that settings and the stub never load torch
    if config.use_stub_model:
        from stateset_agents.inference.stub_engine import StubEngine

        return StubEngine(config.stub_responses) if config.stub_responses else StubEngine()
    if config.engine == "vllm":
        from stateset_agents.inference.vllm_engine import VLLMEngine

        return VLLMEngine(config.model_name, dtype=config.torch_dtype)

    from stateset_agents.inference.loading import load_model, load_tokenizer
    from stateset_agents.inference.model_names import model_folder
    from stateset_agents.inference.transformers_engine import TransformersEngine

    folder = model_folder(config.model_name)
    device = _resolved(config)
    model = load_model(folder, dtype=config.torch_dtype, device=device)
    return TransformersEngine(model, load_tokenizer(folder), own_thread=own_thread)


def _resolved(config: AgentConfig) -> str:
    """The device; one warning about every setting that this machine cannot follow."""
    from stateset_agents.inference.loading import (
        resolve_attention,
        resolve_device,
        resolve_dtype,
    )

    device, no_device = resolve_device(config.device_map)
    dtype = resolve_dtype(config.torch_dtype, device)
    _, no_attention = resolve_attention(config.attn_implementation, device, dtype)
    asked = "device_map" in config.model_fields_set
    told = [told for told in (no_device if asked else None, no_attention) if told]
    if told:
        _log.warning("%s", "; ".join(told))
    return device
