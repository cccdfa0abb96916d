"""The environment's own judgement as a reward.

Owns how the rewards of its steps become one number. It does not know what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from stateset_agents.core.reward import RewardFunction, RewardResult
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.exceptions import ConfigurationError

Aggregation = Literal["mean", "sum", "last"]


class EnvironmentReward(RewardFunction):
    """What `Environment.step` gave for each answer: the rewards that episodes keep in the turns'
    `metadata["environment_reward"]`, which no other reward reads.

    The score is in the range of the environment's own numbers; keep them in [0, 1] beside other
    rewards. Each answer's own number is its turn's score, which `credit: turn` uses. A turn that
    was not played in an environment counts 0, and so does a conversation without answers.

    Args:
        aggregation: `mean` over the answers, their `sum` (an environment that pays once, where the
            task is completed), or the `last` one's.
        weight: in a `CompositeReward`.

    Raises:
        ConfigurationError: another aggregation.
    """

    def __init__(self, aggregation: Aggregation = "sum", weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        if aggregation not in ("mean", "sum", "last"):
            raise ConfigurationError(
                f"aggregation is {aggregation!r}; allowed: 'mean', 'sum', 'last'"
            )
        self.aggregation = aggregation

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """The steps' rewards in one; each answer's own in `turn_scores`."""
        steps = [
            float(turn.metadata.get("environment_reward", 0.0))
            for turn in turns
            if turn.role == "assistant"
        ]
        score = {
            "mean": sum(steps) / max(1, len(steps)),
            "sum": sum(steps),
            "last": steps[-1] if steps else 0.0,
        }[self.aggregation]
        return RewardResult(score, {self.name: score}, {}, steps or None)
