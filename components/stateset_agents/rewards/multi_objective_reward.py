"""Several objectives as one reward: a weighted sum, their minimum, or their product."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

from stateset_agents.core.reward import RewardFunction, RewardResult, Scorable
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.exceptions import ConfigurationError, RewardError

Aggregation = Literal["weighted_sum", "min", "product"]
_KEYS = ("name", "reward", "weight", "range")


@dataclass(frozen=True, slots=True)
class _Objective:
    name: str
    reward: RewardFunction
    weight: float
    low: float
    high: float

    def scaled(self, score: float) -> float:
        return min(1.0, max(0.0, (score - self.low) / (self.high - self.low)))


class MultiObjectiveReward(RewardFunction):
    """Objectives, each with a name and a weight, as one number.

    With s_i the objectives' scores and w_i their weights:
    - `weighted_sum`: sum(w_i * s_i). What one loses another can make up for.
    - `min`: the lowest s_i. Weights say only who takes part (above 0): nothing makes up for the
      weakest, and only the weakest is learned from.
    - `product`: product(s_i ** w_i). A 0 anywhere is 0; a weight is how strongly it pulls.
    `normalize` scales each score from its `range` (by default 0 to 1) to [0, 1], cut at the ends,
    and the weights to a sum of 1: the result is in [0, 1], and the product is the weighted
    geometric mean. Without it scores and weights are taken as they are.

    `breakdown` has each objective's own score, as it gave it; `turn_scores` are the same formula
    over the objectives that tell turns apart.

    Args:
        objectives: mappings with `name` (unique), `reward`, and optionally `weight` (1; 0 or more)
            and `range` (low, high), which only `normalize` reads. The weight here counts, not the
            reward's own.
        aggregation: "weighted_sum", "min" or "product".
        normalize: see above.
        weight: of the whole, should it be part of a composite.
        name: its key in that one's breakdown.

    Raises:
        ConfigurationError: every problem of the objectives and the aggregation at once.
    """

    def __init__(
        self,
        objectives: Sequence[Mapping[str, Any]],
        aggregation: Aggregation = "weighted_sum",
        normalize: bool = True,
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight=weight, name=name)
        problems = _problems(objectives)
        if aggregation not in get_args(Aggregation):
            problems.append(
                f"aggregation is {aggregation!r}; allowed: {', '.join(get_args(Aggregation))}"
            )
        whether: Any = normalize
        if not isinstance(whether, bool):
            problems.append(f"normalize is {normalize!r}; allowed: True, False")
        if problems:
            raise ConfigurationError(problems)
        self.objectives = [_objective(entry) for entry in objectives]
        self.aggregation = aggregation
        self.normalize = normalize

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation."""
        return (await self.compute_rewards([(turns, context or {})]))[0]

    async def compute_rewards(self, conversations: Sequence[Scorable]) -> list[RewardResult]:
        """Score many; each objective sees the whole list.

        Raises:
            RewardError: an objective raised, or a score is below 0 in a product of raw scores.
        """
        columns = [await one.reward.compute_rewards(conversations) for one in self.objectives]
        return [
            self._join([column[row] for column in columns]) for row in range(len(conversations))
        ]

    def _join(self, parts: Sequence[RewardResult]) -> RewardResult:
        names = [objective.name for objective in self.objectives]
        return RewardResult(
            score=self._formula([part.score for part in parts]),
            breakdown={name: part.score for name, part in zip(names, parts, strict=True)},
            metadata={
                name: part.metadata
                for name, part in zip(names, parts, strict=True)
                if part.metadata
            },
            turn_scores=self._turn_scores(parts),
        )

    def _formula(self, scores: Sequence[float | None]) -> float:
        given = [
            (one, score)
            for one, score in zip(self.objectives, scores, strict=True)
            if score is not None and one.weight > 0
        ]
        if not all(math.isfinite(score) for _, score in given):
            return math.nan  # cut at the ends of a range, it would pass for a score
        told = [(one, one.scaled(score) if self.normalize else score) for one, score in given]
        total = sum(one.weight for one, _ in told) if self.normalize else 1.0
        if self.aggregation == "weighted_sum":
            return sum(one.weight * score for one, score in told) / total
        if self.aggregation == "min":
            return min(score for _, score in told)
        value = 1.0
        for one, score in told:
            if score < 0:
                raise RewardError(
                    f"reward {self.name!r}: objective {one.name!r} scored {score}; a product has "
                    "no use for what is below 0. Give the objective a `range` and normalize=True"
                )
            value *= score ** (one.weight / total)
        return value

    def _turn_scores(self, parts: Sequence[RewardResult]) -> list[float] | None:
        lengths = {
            len(part.turn_scores)
            for one, part in zip(self.objectives, parts, strict=True)
            if part.turn_scores is not None and one.weight > 0
        }
        if len(lengths) != 1:
            return None
        # as in CompositeReward: an objective of the whole conversation counts at every turn
        return [
            self._formula(
                [p.score if p.turn_scores is None else p.turn_scores[turn] for p in parts]
            )
            for turn in range(lengths.pop())
        ]


def _problems(objectives: Sequence[object]) -> list[str]:
    if not objectives:
        return [
            "objectives is empty; give at least one {'name': ..., 'reward': ..., 'weight': ...}"
        ]
    problems: list[str] = []
    names: list[object] = []
    weights: list[object] = []
    for place, entry in enumerate(objectives):
        if not isinstance(entry, Mapping):
            problems.append(f"objectives[{place}] is {entry!r}; it must be a mapping")
            continue
        problems += [f"objectives[{place}]: {problem}" for problem in _entry_problems(entry)]
        if entry.get("name") in names:
            problems.append(f"objectives[{place}]: the name {entry['name']!r} occurs twice")
        names.append(entry.get("name"))
        weights.append(entry.get("weight", 1.0))
    if not problems and all(weight == 0 for weight in weights):
        problems.append("no objective has a weight above 0")
    return problems


def _entry_problems(entry: Mapping[str, Any]) -> list[str]:
    problems = [
        f"unknown key {key!r}; allowed: {', '.join(_KEYS)}" for key in entry if key not in _KEYS
    ]
    if not isinstance(entry.get("name"), str) or not entry["name"]:
        problems.append(f"name is {entry.get('name')!r}; give a text that is not empty")
    if not isinstance(entry.get("reward"), RewardFunction):
        problems.append(
            f"reward is {entry.get('reward')!r}; give a RewardFunction (a function becomes one by "
            "@reward_function())"
        )
    weight = entry.get("weight", 1.0)
    if not isinstance(weight, Real) or not math.isfinite(weight) or weight < 0:
        problems.append(f"weight is {weight!r}; give a finite number of 0 or more")
    bounds = entry.get("range", (0.0, 1.0))
    if (
        not isinstance(bounds, Sequence)
        or len(bounds) != 2
        or not all(isinstance(bound, Real) and math.isfinite(bound) for bound in bounds)
        or not bounds[0] < bounds[1]
    ):
        problems.append(f"range is {bounds!r}; give (low, high) with low < high")
    return problems


def _objective(entry: Mapping[str, Any]) -> _Objective:
    low, high = entry.get("range", (0.0, 1.0))
    return _Objective(
        entry["name"], entry["reward"], float(entry.get("weight", 1.0)), float(low), float(high)
    )
