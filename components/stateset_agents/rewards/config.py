"""The section `rewards` of params.yaml."""

from __future__ import annotations

from pydantic import Field

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


class RewardsConfig(Settings):
    """Which rewards are used and how much each counts."""

    weights: RewardWeights = RewardWeights()
    """Summands by name."""
    gates: RewardGates = RewardGates()
    """Factors by name."""
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
