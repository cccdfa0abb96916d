"""Agents: who answers a conversation.

Owns the settings of generation, the base class, and the agent that speaks through an engine and
records what it sampled. It does not know environments, rewards or training; how a context is
compressed is `context_compression.py`'s, what is remembered `memory.py`'s.
"""

from __future__ import annotations

import copy
import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field

from stateset_agents.core import context_compression
from stateset_agents.core.context_compression import CompressionStrategy
from stateset_agents.core.memory import ConversationMemory
from stateset_agents.core.recorder import EpisodeRecorder, RecordedSample, current_recorder
from stateset_agents.core.trajectory import Message, TokenSample, to_messages
from stateset_agents.exceptions import ConfigurationError, DataError
from stateset_agents.inference.engine import (
    Engine,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
)
from stateset_agents.settings import Settings

if TYPE_CHECKING:
    from stateset_agents.inference.chat_template import ChatTokenizer

STUB_SCHEME = "stub://"


class GenerationSettings(Settings):
    """How an agent speaks: the `agent` section of params.yaml."""

    system_prompt: str = ""
    """Put before every conversation, ahead of the conversation's own system message. Empty: none.
    """
    max_new_tokens: int = Field(default=512, ge=1)
    """The most tokens of one answer."""
    temperature: float = Field(default=0.8, ge=0)
    """Of sampling; log-probs are at this temperature. 0: greedy, which cannot be trained on."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of tokens with this probability. 1: off, as training wants it,
    because a cut distribution is not the one whose gradient is taken."""
    top_k: int = Field(default=0, ge=0)
    """Sample from the k likeliest tokens. 0: off, as training wants it."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Divides the logits of tokens that occurred (Keskar et al. 2019). 1: off."""
    torch_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Of the weights. auto: bfloat16 where the hardware computes in it, else float32."""
    enable_context_compression: bool = False
    """Compress a conversation that has become longer than `max_context_tokens`, instead of ending
    it."""
    max_context_tokens: int | None = Field(default=None, ge=1)
    """Tokens before an answer from which on a context is compressed. None: as many as fit the
    engine's context together with `max_new_tokens`."""
    compression_ratio: float = Field(default=0.5, gt=0, lt=1)
    """Share of the context's tokens that a compression keeps, tokens beyond `max_context_tokens`
    not counted. The system prompt and the last user turn are kept whatever they take."""
    compression_strategy: CompressionStrategy = "summary"
    """`summary`: the model sums up what is old; `truncate`: the newest tokens stay;
    `sliding_window`: the newest whole exchanges stay."""


class AgentConfig(GenerationSettings):
    """A model and how it speaks."""

    model_name: str = Field(min_length=1)
    """A folder with a model and its tokenizer; with `use_stub_model`, any name."""
    device_map: str = "auto"
    """Where the model runs: "cpu", "cuda", "cuda:1". auto: the first CUDA device, else the CPU."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What computes: transformers in this process, or vLLM in its own (docs/engines.md)."""
    seed: int | None = Field(default=None, ge=0)
    """Of answers outside an episode; an episode has its own. None: a new one for each answer."""
    use_stub_model: bool = False
    """Answer with `stub_responses` instead of a model: instant, nothing is loaded."""
    stub_responses: list[str] | None = None
    """What the stub says, in turn. None: the stub engine's own sentences."""


class Agent(ABC):
    """Base of all agents: a history of messages goes in, an answer comes out."""

    async def initialize(self) -> None:
        """Load what is needed; called once before the first answer. Nothing by default."""
        return None

    @abstractmethod
    async def generate_response(self, messages: Sequence[Message]) -> str:
        """Answer a conversation, oldest message first."""

    def release(self, conversation_id: str) -> None:
        """Forget what is kept for a conversation that has ended. Nothing by default."""
        return None


class MultiTurnAgent(Agent):
    """An agent that speaks through an engine.

    Subclasses override `generate_response` and call `super()`: they may change the history before
    and the answer after. The environment and the rewards see the final text; training sees the
    tokens that were sampled.

    Args:
        config: the model and how it speaks.
        engine: an engine that stands already; None lets `initialize` make one.
        memory: what was said in earlier conversations with the same user. Episodes read it and
            never write to it: a group's alternatives of one conversation did not happen.
    """

    def __init__(
        self,
        config: AgentConfig,
        engine: Engine | None = None,
        *,
        memory: ConversationMemory | None = None,
    ) -> None:
        self.config = config
        self.memory = memory
        self._engine = engine

    async def initialize(self) -> None:
        """Make the engine, unless one was given; a second call does nothing.

        Raises:
            ConfigurationError: the settings of the stub contradict each other.
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
        other.config = type(self.config)(**{**self.config.model_dump(), **settings})
        other._engine = None
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

    async def generate_response(self, messages: Sequence[Message]) -> str:
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
        given = to_messages(messages)
        history = self._with_system_prompt(given)
        recorder = current_recorder()
        if recorder is not None:
            return await self._generate_recorded(history, recorder)
        prompt = tuple(self.tokenizer.render(history))
        if self._is_too_long(prompt):
            prompt = await self._compressed(history, prompt, self._summarise)
        text = self.tokenizer.decode((await self._sample(prompt)).token_ids)
        if self.memory is not None:
            self.memory.remember(given, text)
            await self.memory.condense(self._summarise, self.tokenizer, self._most_tokens())
        return text

    async def _generate_recorded(self, history: list[Message], recorder: EpisodeRecorder) -> str:
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
            recorder,
            call,
            history,
            prompt,
            conversation_id=recorder.conversation_id,
            group_id=recorder.group_id,
        )

    async def _record_call(
        self,
        recorder: EpisodeRecorder,
        call: int,
        history: list[Message],
        prompt: tuple[int, ...],
        *,
        max_new_tokens: int | None = None,
        conversation_id: str | None = None,
        group_id: str | None = None,
    ) -> str:
        """Sample, and keep what was seen and sampled under the messages that it answers.

        After a compression these are the whole history: what follows carries on from the compressed
        context, and a later one starts from the whole again.
        """
        turn = recorder.turn
        result = await self.engine.generate(
            GenerationRequest(
                prompt_token_ids=prompt,
                sampling=self._sampling(recorder.call_seed(call), max_new_tokens),
                conversation_id=conversation_id,
                group_id=group_id,
            )
        )
        text = self.tokenizer.decode(result.token_ids)
        sample = TokenSample(prompt, result.token_ids, result.logprobs, result.finish_reason, turn)
        recorder.end_call(call, RecordedSample(tuple(history), text, sample))
        return text

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
        prompt = tuple(self.tokenizer.render(request))
        return self.tokenizer.decode((await self._sample(prompt, max_tokens)).token_ids)

    async def _sample(
        self, prompt: tuple[int, ...], max_new_tokens: int | None = None
    ) -> GenerationResult:
        """Outside an episode: nothing is recorded."""
        seed = secrets.randbits(63) if self.config.seed is None else self.config.seed
        return await self.engine.generate(
            GenerationRequest(prompt, self._sampling(seed, max_new_tokens))
        )

    def release(self, conversation_id: str) -> None:
        """Free the engine's cache of a conversation; unknown names are fine."""
        if self._engine is not None:
            self._engine.release(conversation_id)

    def _with_system_prompt(self, history: list[Message]) -> list[Message]:
        """Put our system prompt and what is remembered before the system message that the history
        starts with, if any.
        """
        remembered = self.memory.recall(history) if self.memory is not None else ""
        parts = [part for part in (self.config.system_prompt, remembered) if part]
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
        ConfigurationError: the settings of the stub contradict each other.
        ModelSourceError: the model cannot be loaded.
    """
    # imported here, so that settings and the stub never load torch
    if config.use_stub_model:
        from stateset_agents.inference.stub_engine import StubEngine

        return StubEngine(config.stub_responses) if config.stub_responses else StubEngine()
    problems = []
    if config.model_name.startswith(STUB_SCHEME):
        problems.append(
            f"model_name is {config.model_name!r}, which names no model; set use_stub_model=True "
            "or name a model's folder"
        )
    if config.stub_responses is not None:
        problems.append(
            "stub_responses are given, but use_stub_model is False; set it, or drop them"
        )
    if config.engine == "vllm" and config.device_map != "auto":
        problems.append(
            f"device_map is {config.device_map!r}, but vLLM computes on the device that it was "
            "built for; leave device_map at auto"
        )
    if problems:
        raise ConfigurationError(problems)
    if config.engine == "vllm":
        from stateset_agents.inference.vllm_engine import VLLMEngine

        return VLLMEngine(config.model_name, dtype=config.torch_dtype)

    import torch

    from stateset_agents.inference.loading import load_model, load_tokenizer
    from stateset_agents.inference.transformers_engine import TransformersEngine

    device = config.device_map
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(config.model_name, dtype=config.torch_dtype, device=device)
    return TransformersEngine(model, load_tokenizer(config.model_name), own_thread=own_thread)
