"""Settings of the section `scenarios`: where the data comes from and what it must be like."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from stateset_agents.settings import Settings

Share = Annotated[float, Field(ge=0, le=1)]


class DataConfig(Settings):
    """Sources and thresholds. A threshold that is not reached stops the line."""

    sources: tuple[str, ...] = Field(("data/scenarios",), min_length=1)
    """Scenario files or folders; `s3://bucket/key` is fetched first. `builtin:customer_service`,
    `builtin:technical_support` and `builtin:sales` are conversations that ship with the package."""
    intents: str = "data/scenarios/intents.yaml"
    """The file that says which split an intent belongs to. Empty: there are no splits, and the
    command line trains and evaluates on all scenarios (the retraining line needs a file)."""
    preferences: tuple[str, ...] = Field(("data/preferences/train.jsonl",), min_length=1)
    """Preference pairs that the reward model learns from."""
    heldout_preferences: tuple[str, ...] = Field(("data/preferences/heldout.jsonl",), min_length=1)
    """Preference pairs that only measure it."""

    min_scenarios: int = Field(240, ge=1)
    """Fewest scenarios in all."""
    min_intents: int = Field(40, ge=1)
    """Fewest intents in all."""
    min_heldout_intents: int = Field(9, ge=1)
    """Fewest intents that are held out for evaluation."""
    min_turns: int = Field(3, ge=1)
    """Fewest user turns of a scenario."""
    max_turns: int = Field(5, ge=1)
    """Most user turns of a scenario."""
    max_turn_words: int = Field(40, ge=1)
    """Most words of one user turn."""
    max_context_words: int = Field(110, ge=1)
    """Most words of a policy excerpt: every word is read by the model at each turn."""
    max_similarity: Share = 0.6
    """Two scenarios whose user turns share more of their 5-grams than this (Jaccard) are copies."""
    require_rubric: bool = True
    """Whether each scenario must have a rubric whose facts its context states."""

    min_preferences: int = Field(600, ge=1)
    """Fewest pairs to learn from."""
    min_heldout_preferences: int = Field(80, ge=1)
    """Fewest pairs to measure with."""
    chosen_longer_share: tuple[Share, Share] = (0.4, 0.6)
    """Band for the share of pairs whose chosen answer is the longer one: outside of it, length
    alone tells the better answer."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> DataConfig:
        if self.min_turns > self.max_turns:
            raise ValueError(
                f"min_turns is {self.min_turns} and max_turns {self.max_turns}; the first must "
                "not be larger"
            )
        low, high = self.chosen_longer_share
        if low > high:
            raise ValueError(f"chosen_longer_share is [{low}, {high}]; the first is the lower one")
        return self
