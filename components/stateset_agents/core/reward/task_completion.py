"""Did the conversation do what its rubric asks?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from stateset_agents.core.reward.base import RewardFunction, RewardResult
from stateset_agents.core.reward.conversation import answers_of, rubric_of
from stateset_agents.core.reward.helpfulness import HelpfulnessReward
from stateset_agents.core.rubric import check_rubric
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.exceptions import ConfigurationError, RewardError

_HELPS_FROM, _HELPS_FULLY = 0.3, 0.8


class TaskCompletionReward(RewardFunction):
    """The share of the scenario's rubric that the conversation meets, see `core.rubric`.

    Measures: things done (asked for, stated, acknowledged) by plain sentences in the right turn,
    halved for each thing that must not be said. `turn_scores` are what was earned in the turn times
    the number of turns: without violations their mean is the score, as with every other reward that
    is summed, so that a composite weighs the rubric alike by turns and by conversations.
    Fooled by: right sentences at the right turn for the wrong reason (asking everybody for the
    order number), reciting the policy, nonsense that holds an item's words, one
    sentence that denies what another said, and anything untrue that no item forbids.

    Without a rubric it can only look at what the user asked for: the mean over assistant turns of
    `(h - 0.3) / 0.5`, cut to [0, 1], h the turn's helpfulness (lexical), and half of that where the
    last turn that is no goodbye states nothing. That is much weaker: write a rubric.

    Args:
        without_rubric: of a conversation whose scenario has no rubric: "requests" (default), the
            above; a number, that constant; None makes it a RewardError.
        weight: its share in a composite.
        name: its key in a composite's breakdown.
    """

    def __init__(
        self,
        weight: float = 1.0,
        name: str | None = None,
        *,
        without_rubric: float | Literal["requests"] | None = "requests",
    ) -> None:
        super().__init__(weight=weight, name=name)
        if isinstance(without_rubric, str) and without_rubric != "requests":
            raise ConfigurationError(
                f"reward {self.name!r}: without_rubric is {without_rubric!r}; give 'requests', a "
                "number, or None"
            )
        self.without_rubric = without_rubric
        self._helpfulness = HelpfulnessReward(addressing="lexical")

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
                    "construct TaskCompletionReward(without_rubric='requests')"
                )
            if isinstance(self.without_rubric, str):
                return await self._requests(turns, context)
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
            turn_scores=[len(outcome.turn_scores) * share for share in outcome.turn_scores],
        )

    async def _requests(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None
    ) -> RewardResult:
        helpful = await self._helpfulness.compute_reward(turns, context)
        low, span = _HELPS_FROM, _HELPS_FULLY - _HELPS_FROM
        scores = [min(1.0, max(0.0, (one - low) / span)) for one in helpful.turn_scores or []]
        answers = answers_of(turns, context)
        asked = [place for place, answer in enumerate(answers) if not answer.closes]
        if asked and all(one.is_question for one in answers[asked[-1]].sentences):
            scores[asked[-1]] /= 2
        score = sum(scores) / len(scores) if scores else 0.0
        return RewardResult(score=score, breakdown={"requests": score}, turn_scores=scores)
