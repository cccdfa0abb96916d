"""Settings of the evaluation: the section `evaluate` of `params.yaml`. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stateset_agents.settings import Settings


class EvaluationConfig(Settings):
    """How policies are compared on the held-out scenarios.

    How an answer is sampled (temperature, `max_new_tokens`, system prompt) comes from the section
    `agent`; the champion is played with the settings that it was registered and is served with. So
    every policy is judged as people meet it.
    """

    seeds: list[int] = Field(default=[101, 102], min_length=2)
    """One conversation per scenario and seed, the same seeds for every policy. At least two
    different ones, so that the spread between samples is in the interval."""

    scenarios_per_intent: int = Field(default=0, ge=0)
    """At most so many scenarios of each held-out intent, the first ones by id. 0 = all."""

    max_turns: int = Field(default=10, ge=2)
    """Messages of both sides in one conversation at most, as in `ConversationEnvironment`."""

    bootstrap_samples: int = Field(default=5_000, ge=200)
    """How often the held-out set is drawn again for an interval. 5,000 moves the ends of a 95%
    interval by about 1% of its width from seed to seed."""

    bootstrap_seed: int = 20_240
    """Seed of those draws: the same conversations give the same interval."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    """Coverage of every interval in the report, a share: 0.95 = 95%."""

    cluster: Literal["scenario", "intent"] = "scenario"
    """What is drawn again: whole scenarios (would it be so on other scenarios of these intents?)
    or whole intents (would it be so on other intents? wider). Both are in the report for the
    reward; this one is the interval that promotion reads."""

    tie_tolerance: float = Field(default=0.005, ge=0.0)
    """Two conversations whose rewards differ by no more than this are a tie. Reward units."""

    fluency_band: tuple[float, float] = (-0.5, 1.0)
    """Allowed change of the answers' mean log-likelihood under the base model, from and to, nats a
    token, against the base's own answers. Below the band: words that the base finds odd. Above it:
    words that it finds too easy, which is what repetition looks like; there is more room on that
    side, because training also makes a policy surer of ordinary words."""

    fluency_seeds: int = Field(default=1, ge=1)
    """For how many of the seeds (the first ones) fluency is measured; it costs a forward pass of
    every conversation under the base model."""

    distinctness_floor: float = Field(default=0.25, ge=0.0, le=1.0)
    """Lowest distinct-2 that is in the band, whatever the base has. See `diversity`."""

    distinctness_band: float = Field(default=0.25, gt=0.0, le=1.0)
    """How far distinct-2 may fall below the base's own, in absolute terms. More distinct than the
    base is never out of the band."""

    max_identical_answers: float = Field(default=0.35, ge=0.0, le=1.0)
    """Largest share of answers that also occur, word for word, in another scenario. Not 0: a
    goodbye, a quarter of the answers where every user takes leave, may well be the same."""

    max_failed_share: float = Field(default=0.02, ge=0.0, le=1.0)
    """Largest share of a policy's conversations that may fail before the evaluation does.
    Failed conversations are left out of the pairs, so many of them would hide a bad policy."""

    report_conversations: int = Field(default=0, ge=0)
    """How many conversations the HTML report shows side by side: half from the largest losses,
    half from the largest gains. 0 = all. `conversations.jsonl` always has all."""

    @model_validator(mode="after")
    def _check_together(self) -> EvaluationConfig:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(
                f"seeds: {self.seeds} holds a seed twice; give each seed once, at least two"
            )
        if not self.fluency_band[0] < 0 < self.fluency_band[1]:
            raise ValueError(
                f"fluency_band: {list(self.fluency_band)} does not hold 0, no change; give a "
                "negative and a positive number"
            )
        if self.fluency_seeds > len(self.seeds):
            raise ValueError(
                f"fluency_seeds: {self.fluency_seeds} is more than the {len(self.seeds)} seeds; "
                f"give 1 to {len(self.seeds)}"
            )
        return self
