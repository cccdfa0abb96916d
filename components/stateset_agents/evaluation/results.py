"""What an evaluation produced, before anything is compared: conversations and their measures.

Owns the values that `run` fills, and that `compare`, `diversity` and `report` read. It does not
know how conversations are played or scored, nor files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from stateset_agents.core.trajectory import MultiTurnTrajectory
from stateset_agents.inference.engine import FinishReason

# What a conversation is measured by besides its reward's parts; no part may have such a name.
OWN_MEASURES = frozenset({"reward", "answer_tokens", "truncated", "log_likelihood"})

PolicyName = Literal["base", "champion", "challenger"]


@dataclass(frozen=True, slots=True)
class RubricVerdict:
    """One item of a scenario's rubric, and whether the conversation met it."""

    kind: str
    description: str
    met: bool
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class EvaluatedConversation:
    """One scenario played once with one seed by one policy.

    Attributes:
        scenario: the scenario as a dict (keys `id`, `intent`, `topic`, `rubric`, ...).
        seed: the evaluation seed, one of `EvaluationConfig.seeds`.
        trajectory: what was said and sampled, with `episode_reward` and `reward_parts`.
        rubric: a verdict for each item of the scenario's rubric, in its order.
        log_likelihood: mean over the answers' tokens under the base model, nats; None where it
            was not measured.
    """

    scenario: dict[str, Any]
    seed: int
    trajectory: MultiTurnTrajectory
    rubric: tuple[RubricVerdict, ...] = ()
    log_likelihood: float | None = None

    @property
    def key(self) -> tuple[str, int]:
        """What pairs conversations of two policies: scenario and seed."""
        return (str(self.scenario["id"]), self.seed)

    @property
    def intent(self) -> str:
        """The scenario's intent; its topic, and then "unknown", where it has none."""
        return str(self.scenario.get("intent") or self.scenario.get("topic") or "unknown")

    @property
    def failed(self) -> bool:
        """True when the conversation could not be played: it has no reward and no measures."""
        return self.trajectory.failed

    @property
    def answers(self) -> list[str]:
        """What the policy said, one text an assistant turn."""
        return [turn.content for turn in self.trajectory.assistant_turns]

    @property
    def answer_tokens(self) -> int:
        """Sampled tokens in the whole conversation."""
        return sum(len(sample.token_ids) for sample in self.trajectory.samples)

    @property
    def truncated_share(self) -> float:
        """Share of the samples that ran into `max_new_tokens`; 0 where nothing was sampled."""
        samples = self.trajectory.samples
        cut = sum(sample.finish_reason is FinishReason.LENGTH for sample in samples)
        return cut / len(samples) if samples else 0.0

    def measures(self) -> dict[str, float]:
        """Every number that is compared in pairs: `reward`, its parts by name, `answer_tokens`
        (per assistant turn), `truncated` (share) and, where measured, `log_likelihood`.
        """
        turns = max(1, len(self.trajectory.assistant_turns))
        values = {"reward": float(self.trajectory.episode_reward)}
        values |= {name: float(value) for name, value in self.trajectory.reward_parts.items()}
        values["answer_tokens"] = self.answer_tokens / turns
        values["truncated"] = self.truncated_share
        if self.log_likelihood is not None:
            values["log_likelihood"] = self.log_likelihood
        return values


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """All conversations of one policy.

    Attributes:
        name: "base", "champion" or "challenger".
        title: what a person calls it, for instance `support-agent v3`.
        version: the registry's version; None for what is not registered.
        conversations: in the order (seed, scenario), the same for every policy.
        seconds: wall time of playing them, all in flight at once.
    """

    name: PolicyName
    title: str
    conversations: tuple[EvaluatedConversation, ...]
    seconds: float = 0.0
    version: str | None = None

    @property
    def scored(self) -> list[EvaluatedConversation]:
        """The conversations that did not fail."""
        return [one for one in self.conversations if not one.failed]

    @property
    def failed_count(self) -> int:
        """How many conversations raised."""
        return len(self.conversations) - len(self.scored)

    @property
    def milliseconds_per_turn(self) -> float:
        """Wall time of playing divided by assistant turns: the cost of a turn at full batch, not
        the time that a single user waits. 0 where nothing was said.
        """
        turns = sum(len(one.trajectory.assistant_turns) for one in self.scored)
        return 1000.0 * self.seconds / turns if turns else 0.0
