"""The section `rewards` of params.yaml."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from stateset_agents.settings import Settings


class RewardWeights(Settings):
    """Summands of the composite reward; they are normalised by their sum. 0 leaves a part out."""

    rubric: float = Field(default=0.5, ge=0)
    """Share of the rubric that the conversation meets, in [0, 1]."""
    helpfulness: float = Field(default=0.15, ge=0)
    """How far answers take up what the user said, in [0, 1]."""
    conciseness: float = Field(default=0.1, ge=0)
    """Words per turn within a band, in [0, 1]."""
    learned: float = Field(default=0.25, ge=0)
    """The reward model's calibrated score, in [0, 1]."""
    correctness: float = Field(default=0.0, ge=0)
    """Facts and numbers held to the scenario's truth, or to its policy; in [0, 1]."""
    engagement: float = Field(default=0.0, ge=0)
    """How well answers keep the conversation going, in [0, 1]."""
    judge: float = Field(default=0.0, ge=0)
    """A language model's marks, see the section `judge`; in [0, 1]."""


class RewardGates(Settings):
    """Factors of the composite reward, 1 - strength * (1 - score).

    Strength 0 leaves a gate out; with 1, a gate whose score is 0 makes the whole reward 0.
    """

    safety: float = Field(default=1.0, ge=0, le=1)
    """Strength of the safety gate."""
    repetition: float = Field(default=1.0, ge=0, le=1)
    """Strength of the gate against repeated and copied words."""
    fluency: float = Field(default=1.0, ge=0, le=1)
    """Strength of the gate that asks for well-formed sentences."""
    padding: float = Field(default=1.0, ge=0, le=1)
    """Strength of the gate against sentences that answer nothing."""
    finished: float = Field(default=1.0, ge=0, le=1)
    """Strength of the gate against answers that break off."""
    similarity: float = Field(default=0.0, ge=0, le=1)
    """Strength of the gate against answers like earlier ones and like the rest of the group."""


class JudgeConfig(Settings):
    """The language model that judges, read where `weights.judge` is above 0.

    Its API key is in the environment, because params.yaml is in git.
    """

    model: str = ""
    """The judge's name at the endpoint."""
    base_url: str = ""
    """Of an OpenAI-compatible API, most often ending in /v1."""
    api_key_env: str = "STATESET_JUDGE_API_KEY"
    """The environment variable that holds the API key; unset: none is sent."""
    rubric: dict[str, str] = Field(default_factory=dict)
    """Criteria by name, each with what to look for; empty: helpfulness, correctness and tone."""
    criterion_weights: dict[str, float] = Field(default_factory=dict)
    """Of the criteria by name; 1 for those left out."""
    cache_dir: str | None = ".stateset/judge"
    """Where its answers and the account of spending are kept; null: nowhere."""
    max_cost: float | None = Field(default=None, ge=0)
    """What may be spent over the life of `cache_dir`, in the unit of the prices; null: no limit."""
    max_requests: int | None = Field(default=None, ge=0)
    """How often it may answer over the life of `cache_dir`; null: no limit."""
    input_price: float = Field(default=0.0, ge=0)
    """Of a million prompt tokens."""
    output_price: float = Field(default=0.0, ge=0)
    """Of a million completion tokens."""
    max_concurrency: int = Field(default=8, ge=1)
    """Requests at a time."""
    max_retries: int = Field(default=4, ge=0)
    """Further attempts where that may help."""
    backoff_seconds: float = Field(default=1.0, ge=0)
    """Before the first of them, doubling."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """Of one request."""
    max_answer_tokens: int = Field(default=300, ge=1)
    """Of the judge's answer."""
    on_failure: Literal["raise", "skip"] = "raise"
    """Whether a conversation that it does not judge ends the run or is left out of the step."""


class RewardsConfig(Settings):
    """Which rewards are used and how much each counts."""

    weights: RewardWeights = RewardWeights()
    """Summands by name."""
    gates: RewardGates = RewardGates()
    """Factors by name."""
    judge: JudgeConfig = JudgeConfig()
    """The language model that judges."""
    helpfulness_addressing: Literal["lexical", "embeddings"] = "lexical"
    """Whether helpfulness compares words or meaning (the extra `embeddings`)."""
    group_tolerance: float = Field(default=0.6, ge=0, lt=1)
    """Similarity: mean likeness to the group's other answers that is free."""
    min_words: int = Field(default=8, ge=1)
    """Conciseness: the fewest words of a full answer."""
    max_words: int = Field(default=50, ge=1)
    """Conciseness: the most words of a full answer."""
    hard_max_words: int = Field(default=120, ge=2)
    """Conciseness: words at which the score reaches 0."""
    own_tolerance: float = Field(default=0.35, ge=0, lt=1)
    """Repetition: share of an answer that may come from earlier answers."""
    echo_tolerance: float = Field(default=0.35, ge=0, lt=1)
    """Repetition: share of an answer that may be the user's words."""
    quoted_words: int = Field(default=25, ge=1)
    """Repetition: words of the policy that one answer may quote; three times as many give 0."""
    learned_batch_tokens: int = Field(default=1024, ge=64)
    """Learned reward: the most tokens in one forward pass (attention grows with its square)."""
    without_rubric: float | None = Field(default=None, ge=0, le=1)
    """Rubric score of a scenario that has no rubric; None makes that an error."""

    @model_validator(mode="after")
    def _a_judge_has_a_place(self) -> Self:
        if self.weights.judge > 0 and not (self.judge.model and self.judge.base_url):
            raise ValueError(
                f"weights.judge is {self.weights.judge}, and judge.model is {self.judge.model!r}, "
                f"judge.base_url {self.judge.base_url!r}; both are needed, or a weight of 0"
            )
        return self
