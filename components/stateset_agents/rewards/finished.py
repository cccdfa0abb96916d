"""Does the assistant finish what it says?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stateset_agents.core.reward.base import RewardFunction, RewardResult
from stateset_agents.core.reward.conversation import answers_of
from stateset_agents.core.trajectory import ConversationTurn

_UNFINISHED = 0.3


class FinishedReward(RewardFunction):
    """The mean over assistant turns of: 1 when the answer is finished, 0.3 when it is not.

    Unfinished is what the token limit cut, or what does not end in . ! or ?. The factor is so low
    that a finished answer with a sentence less is worth more than any that breaks off.
    Meant as a gate of a `CompositeReward`. Fooled by: a full stop after any word (fluency asks for
    sentences), and by saying less than is due (the rubric asks for it).
    """

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 1."""
        scores = [
            _UNFINISHED if answer.broken_off else 1.0 for answer in answers_of(turns, context)
        ]
        return RewardResult(
            score=sum(scores) / len(scores) if scores else 1.0,
            breakdown={"unfinished": float(sum(score < 1 for score in scores))},
            turn_scores=scores,
        )
