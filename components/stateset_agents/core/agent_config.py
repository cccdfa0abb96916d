"""The settings of an agent: a model, and how it speaks.

Owns the fields, what each means, and which contradict each other. It imports neither torch nor
transformers, and does not know how an answer comes about.
"""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from stateset_agents.core.context_compression import CompressionStrategy
from stateset_agents.core.reasoning import DEFAULT_TAGS, ReasoningTags
from stateset_agents.inference.loading import AttentionName, DtypeName
from stateset_agents.settings import Settings

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
    torch_dtype: DtypeName = "auto"
    """Of the weights. auto: bfloat16 where the hardware computes in it, else float32."""
    enable_reasoning: bool = False
    """Tell thoughts from the answer: what stands between `reasoning_tags` is kept in the turn's
    `metadata["reasoning"]` and trained on, and neither environment nor rewards nor later turns see
    it. A model whose chat template does not know the tags is asked to use them, in the system
    prompt. Thoughts count in `max_new_tokens`; cut off in a thought, the answer is empty."""
    reasoning_tags: ReasoningTags = DEFAULT_TAGS
    """What opens and what closes a thought."""
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
    """A folder with a model and its tokenizer, or a name: that of a folder in the folder that the
    environment variable STATESET_MODELS_DIR names, or else of a model on the hub
    (docs/engines.md). With `use_stub_model`, any name."""
    device_map: str = "auto"
    """Where the model runs: "cpu", "cuda", "cuda:1". auto: the first CUDA device, else the CPU."""
    attn_implementation: AttentionName = "sdpa"
    """Attention of the forward pass in training, where transformers computes it: "sdpa" (torch's
    own), "eager" or "flash_attention_2", which is "sdpa" where the machine lacks what it needs. The
    engine generates with an attention of its own, which reads each conversation's cache in place.
    """
    engine: Literal["transformers", "vllm"] = "transformers"
    """What computes: transformers in this process, or vLLM in its own (docs/engines.md)."""
    seed: int | None = Field(default=None, ge=0)
    """Of answers outside an episode; an episode has its own. None: a new one for each answer."""
    use_stub_model: bool = False
    """Answer with `stub_responses` instead of a model: instant, nothing is loaded."""
    stub_responses: list[str] | None = Field(default=None, min_length=1)
    """What the stub says, in turn. None: the stub engine's own sentences."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        problems = []
        if self.model_name.startswith(STUB_SCHEME) and not self.use_stub_model:
            problems.append(
                f"model_name is {self.model_name!r}, which names no model; set use_stub_model=True "
                "or name a model"
            )
        if self.stub_responses is not None and not self.use_stub_model:
            problems.append(
                "stub_responses are given, but use_stub_model is False; set it, or drop them"
            )
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device_map):
            problems.append(
                f"device_map is {self.device_map!r}; allowed: auto, cpu, mps, cuda, or one of "
                "several GPUs as in cuda:1"
            )
        if self.engine == "vllm" and self.device_map != "auto":
            problems.append(
                f"device_map is {self.device_map!r}, but vLLM computes on the device that it was "
                "built for; leave device_map at auto"
            )
        opening, closing = self.reasoning_tags
        if not opening.strip() or not closing.strip() or opening == closing:
            problems.append(
                f"reasoning_tags are {self.reasoning_tags!r}; two different texts are needed, such "
                f"as {DEFAULT_TAGS!r}"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self
