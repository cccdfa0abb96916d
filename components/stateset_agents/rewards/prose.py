"""Are the answers written in sentences, whatever they are about?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stateset_agents.core.reward import RewardFunction, RewardResult
from stateset_agents.core.reward.conversation import answers_of
from stateset_agents.core.trajectory import ConversationTurn


class ProseReward(RewardFunction):
    """The share of an answer's words in sentences that read as prose, the mean over its turns.

    `FluencyReward` without its list of verbs, which is that of a shop: see
    `core.sentences.Sentence.reads_as_prose`. Meant as a gate. Fooled by: grammatical nonsense.
    """

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 0."""
        scores = [answer.prose_share for answer in answers_of(turns, context)]
        return RewardResult(score=sum(scores) / len(scores) if scores else 0.0, turn_scores=scores)
