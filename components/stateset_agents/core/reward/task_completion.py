"""Did the conversation do what its rubric asks?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stateset_agents.core.reward.base import RewardFunction, RewardResult
from stateset_agents.core.reward.conversation import answers_of, rubric_of
from stateset_agents.core.rubric import check_rubric
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.exceptions import RewardError


class TaskCompletionReward(RewardFunction):
    """The share of the scenario's rubric that the conversation meets, see `core.rubric`.

    Measures: things done (asked for, stated, acknowledged) by plain sentences in the right turn,
    halved for each thing that must not be said.
    Fooled by: right sentences at the right turn for the wrong reason (asking everybody for the
    order number), reciting the policy, and anything untrue that no item forbids.

    Args:
        without_rubric: the score of a conversation whose scenario has no rubric; None (default)
            makes that a RewardError, since a constant teaches nothing.
        weight: its share in a composite.
        name: its key in a composite's breakdown.
    """

    def __init__(
        self,
        weight: float = 1.0,
        name: str | None = None,
        *,
        without_rubric: float | None = None,
    ) -> None:
        super().__init__(weight=weight, name=name)
        self.without_rubric = without_rubric

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; the rubric is `context["rubric"]` or the scenario's.

        Raises:
            RewardError: there is no rubric and no `without_rubric`, or it is malformed.
        """
        rubric = rubric_of(context)
        if rubric is None:
            if self.without_rubric is None:
                scenario = (context or {}).get("scenario") or {}
                raise RewardError(
                    f"reward {self.name!r} needs a rubric, and scenario "
                    f"{scenario.get('id', '?')!r} has none; add one, or "
                    "construct TaskCompletionReward(without_rubric=0.5)"
                )
            return RewardResult(score=self.without_rubric)
        outcome = check_rubric(rubric, [answer.text for answer in answers_of(turns, context)])
        todo = [one for one in outcome.items if one.item.kind != "must_not"]
        broken = [one for one in outcome.items if one.item.kind == "must_not" and not one.met]
        return RewardResult(
            score=outcome.score,
            breakdown={
                "met": float(sum(one.met for one in todo)),
                "to_do": float(len(todo)),
                "broken": float(len(broken)),
            },
            metadata={
                "missed": [one.item.description for one in todo if not one.met],
                "broken": [one.item.description for one in broken],
            },
            turn_scores=list(outcome.turn_scores),
        )
