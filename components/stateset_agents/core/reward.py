"""Reward functions: the base class, composition, and the rewards that every domain shares.

Owns how a finished conversation becomes a number. It does not know rollouts nor training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stateset_agents.core.trajectory import ConversationTurn


@dataclass(slots=True)
class RewardResult:
    """A score in [0, 1] unless the reward's docstring says otherwise.

    `breakdown` maps names to numbers, `turn_scores` has one value per assistant turn if the reward
    can tell turns apart.
    """

    score: float
    breakdown: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    turn_scores: list[float] | None = None


# A conversation to score: its turns, and what is known about it. Keys of the context that this
# package sets: "scenario" (the whole scenario as a dict), "rubric" (core.rubric.Rubric or None),
# "truncated" (list[bool], one per assistant turn: the answer hit max_new_tokens),
# "group" (list of the other conversations' turns in the same group, may be absent).
Scorable = tuple[Sequence[ConversationTurn], dict[str, Any]]


class RewardFunction(ABC):
    """Base of all rewards. Subclass it and write `compute_reward`."""

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        self.weight = weight
        self.name = name or type(self).__name__

    @abstractmethod
    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult | float:
        """Score one conversation."""

    async def compute_rewards(self, conversations: Sequence[Scorable]) -> list[RewardResult]:
        """Score many at once; override where a batch is cheaper than one by one."""
        raise NotImplementedError  # the owner of this file writes it
