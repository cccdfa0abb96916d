"""Several rewards as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stateset_agents.core.reward.base import (
    RewardFunction,
    RewardResult,
    Scorable,
    problem_of_reward,
)
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.exceptions import ConfigurationError


class CompositeReward(RewardFunction):
    """A weighted mean of rewards, multiplied by gates.

        score = sum(w_r * s_r) / sum(w_r) * product(1 - w_g * (1 - s_g))

    over rewards r and gates g. Weights are normalised, so the score stays in [0, 1] when the parts
    do. A gate is a reward whose *absence of faults* nothing else can make up for: with weight 1, a
    gate at 0 makes the whole 0; with weight 0.5 it takes half at most. What is summed can be traded
    (a policy gives up fluency for two more rubric items), what is multiplied cannot.

    `breakdown` has every part's own score, unweighted, by name; a name that occurs twice gets " 2".
    `turn_scores` are the same formula turn by turn over the parts that have them, or None if no
    summand has.

    Args:
        rewards: the summands; each has its weight. At least one has a weight above 0.
        gates: the factors; weights in [0, 1].
        weight: of the composite itself, should it be part of another.
        name: its key in that one's breakdown.

    Raises:
        ConfigurationError: a part that is no reward, no summand with a weight, or a gate's weight
            above 1.
    """

    def __init__(
        self,
        rewards: Sequence[RewardFunction],
        gates: Sequence[RewardFunction] = (),
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight=weight, name=name)
        self.rewards = _parts(rewards, "rewards")
        self.gates = _parts(gates, "gates")
        problems = []
        if not any(reward.weight > 0 for reward in self.rewards):
            problems.append(
                "CompositeReward has no summand with a weight above 0; give at least one reward "
                "in `rewards` (gates alone give no score)"
            )
        problems += [
            f"gate {gate.name!r} has weight {gate.weight}; a gate's weight is in [0, 1]"
            for gate in self.gates
            if gate.weight > 1
        ]
        if problems:
            raise ConfigurationError(problems)
        self._part_names = _unique([part.name for part in [*self.rewards, *self.gates]])

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation."""
        return (await self.compute_rewards([(turns, context or {})]))[0]

    async def compute_rewards(self, conversations: Sequence[Scorable]) -> list[RewardResult]:
        """Score many; each part sees the whole list, so a learned part can batch it.

        Raises:
            RewardError: a part raised; it is named.
        """
        columns = [
            await part.compute_rewards(conversations) for part in [*self.rewards, *self.gates]
        ]
        return [
            self._join([column[row] for column in columns]) for row in range(len(conversations))
        ]

    def _join(self, parts: Sequence[RewardResult]) -> RewardResult:
        scores = [part.score for part in parts]
        breakdown = dict(zip(self._part_names, scores, strict=True))
        return RewardResult(
            score=self._formula(scores),
            breakdown=breakdown,
            metadata={
                name: part.metadata
                for name, part in zip(self._part_names, parts, strict=True)
                if part.metadata
            },
            turn_scores=self._turn_scores(parts),
        )

    def _formula(self, scores: Sequence[float | None]) -> float:
        summands = [
            (reward.weight, score)
            for reward, score in zip(self.rewards, scores, strict=False)
            if score is not None
        ]
        value = sum(weight * score for weight, score in summands)
        value /= sum(weight for weight, _ in summands) or 1.0
        for gate, score in zip(self.gates, scores[len(self.rewards) :], strict=True):
            value *= 1.0 if score is None else 1 - gate.weight * (1 - score)
        return value

    def _turn_scores(self, parts: Sequence[RewardResult]) -> list[float] | None:
        lengths = {len(part.turn_scores) for part in parts if part.turn_scores is not None}
        summands = parts[: len(self.rewards)]
        if len(lengths) != 1 or all(part.turn_scores is None for part in summands):
            return None
        # A part that judges conversations alone counts with that score at every turn: left out,
        # it would be paid for, compared and promoted by, and never trained on.
        return [
            self._formula(
                [p.score if p.turn_scores is None else p.turn_scores[turn] for p in parts]
            )
            for turn in range(lengths.pop())
        ]


def _parts(given: Sequence[RewardFunction], what: str) -> list[RewardFunction]:
    """The parts as a list.

    Raises:
        ConfigurationError: every one that is no reward.
    """
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise ConfigurationError(
            f"{what} of a CompositeReward is {given!r:.80}; give a list of rewards"
        )
    parts = list(given)
    named = (problem_of_reward(one, f"{what}[{place}]") for place, one in enumerate(parts))
    if problems := [problem for problem in named if problem]:
        raise ConfigurationError(problems)
    return parts


def _unique(names: Sequence[str]) -> list[str]:
    taken: dict[str, int] = {}
    unique = []
    for name in names:
        taken[name] = taken.get(name, 0) + 1
        unique.append(name if taken[name] == 1 else f"{name} {taken[name]}")
    return unique
