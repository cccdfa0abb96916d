"""Agents: who answers a conversation.

Owns the settings of generation, the base class, and the agent that speaks through an engine and
records what it sampled. It does not know environments, rewards or training.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stateset_agents.core.recorder import EpisodeRecorder, RecordedSample, current_recorder
from stateset_agents.core.trajectory import Message, TokenSample, to_messages
from stateset_agents.exceptions import ConfigurationError, DataError
from stateset_agents.inference.engine import Engine, GenerationRequest, SamplingParams
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


class AgentConfig(GenerationSettings):
    """A model and how it speaks."""

    model_name: str = Field(min_length=1)
    """A folder with a model and its tokenizer; with `use_stub_model`, any name."""
    device_map: str = "auto"
    """Where the model runs: "cpu", "cuda", "cuda:1". auto: the first CUDA device, else the CPU."""
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
    """

    def __init__(self, config: AgentConfig, engine: Engine | None = None) -> None:
        self.config = config
        self._engine = engine

    async def initialize(self) -> None:
        """Make the engine, unless one was given; a second call does nothing.

        Raises:
            ConfigurationError: the settings of the stub contradict each other.
            ModelSourceError: the model cannot be loaded.
        """
        if self._engine is None:
            self._engine = _make_engine(self.config)

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
        history = self._with_system_prompt(to_messages(messages))
        recorder = current_recorder()
        if recorder is None:
            seed = secrets.randbits(63) if self.config.seed is None else self.config.seed
            request = GenerationRequest(
                prompt_token_ids=tuple(self.tokenizer.render(history)),
                sampling=self._sampling(seed),
            )
            result = await self.engine.generate(request)
            return self.tokenizer.decode(result.token_ids)
        return await self._generate_recorded(history, recorder)

    async def _generate_recorded(self, history: list[Message], recorder: EpisodeRecorder) -> str:
        call, turn = recorder.begin_call(), recorder.turn
        prompt = recorder.continued_prompt(history, self.tokenizer)
        if prompt is None:
            prompt = tuple(self.tokenizer.render(history))
        request = GenerationRequest(
            prompt_token_ids=prompt,
            sampling=self._sampling(recorder.call_seed(call)),
            conversation_id=recorder.conversation_id,
            group_id=recorder.group_id,
        )
        result = await self.engine.generate(request)
        text = self.tokenizer.decode(result.token_ids)
        sample = TokenSample(prompt, result.token_ids, result.logprobs, result.finish_reason, turn)
        recorder.end_call(call, RecordedSample(tuple(history), text, sample))
        return text

    def release(self, conversation_id: str) -> None:
        """Free the engine's cache of a conversation; unknown names are fine."""
        if self._engine is not None:
            self._engine.release(conversation_id)

    def _with_system_prompt(self, history: list[Message]) -> list[Message]:
        """Join our system prompt with the system message that the history starts with, if any."""
        if not self.config.system_prompt:
            if not history:
                raise DataError(
                    "the history is empty and there is no system prompt: nothing to say"
                )
            return history
        prompt = self.config.system_prompt
        if history and history[0]["role"] == "system":
            prompt, history = f"{prompt}\n\n{history[0]['content']}", history[1:]
        return [{"role": "system", "content": prompt}, *history]

    def _sampling(self, seed: int) -> SamplingParams:
        return SamplingParams(
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            top_k=self.config.top_k,
            repetition_penalty=self.config.repetition_penalty,
            seed=seed,
        )


def _make_engine(config: AgentConfig) -> Engine:
    """The engines are imported here, so that settings and the stub never load torch."""
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
    if problems:
        raise ConfigurationError(problems)

    import torch

    from stateset_agents.inference.loading import load_model, load_tokenizer
    from stateset_agents.inference.transformers_engine import TransformersEngine

    device = config.device_map
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(config.model_name, dtype=config.torch_dtype, device=device)
    return TransformersEngine(model, load_tokenizer(config.model_name))
