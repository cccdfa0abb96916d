"""Are the answers as long as they should be?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stateset_agents.core.reward.base import RewardFunction, RewardResult
from stateset_agents.core.reward.conversation import Answer, answers_of
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.exceptions import ConfigurationError


class ConcisenessReward(RewardFunction):
    """The mean over assistant turns of: is its number of words within a band?

    1 from `min_words` to `max_words`; below, it falls linearly to 0 at no words; above, linearly to
    0 at `hard_max_words`.
    Fooled by: any text of the right length, which is why its weight should be small.

    Args:
        min_words: the fewest words of a full answer.
        max_words: the most words of a full answer.
        hard_max_words: where the score reaches 0.
        weight: its share in a composite.
        name: its key in a composite's breakdown.

    Raises:
        ConfigurationError: not 0 < min_words <= max_words < hard_max_words.
    """

    def __init__(
        self,
        weight: float = 1.0,
        name: str | None = None,
        *,
        min_words: int = 8,
        max_words: int = 50,
        hard_max_words: int = 120,
    ) -> None:
        super().__init__(weight=weight, name=name)
        if not 0 < min_words <= max_words < hard_max_words:
            raise ConfigurationError(
                f"reward {self.name!r}: min_words {min_words}, max_words {max_words} and "
                f"hard_max_words {hard_max_words} do not ascend; give 0 < min <= max < hard_max"
            )
        self.min_words = min_words
        self.max_words = max_words
        self.hard_max_words = hard_max_words

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 0."""
        answers = answers_of(turns, context)
        scores = [self._score(answer) for answer in answers]
        words = sum(_count(answer) for answer in answers)
        return RewardResult(
            score=sum(scores) / len(scores) if scores else 0.0,
            breakdown={"words_per_turn": words / len(answers) if answers else 0.0},
            turn_scores=scores,
        )

    def _score(self, answer: Answer) -> float:
        words = _count(answer)
        if words < self.min_words:
            score = words / self.min_words
        elif words <= self.max_words:
            score = 1.0
        else:
            beyond = (words - self.max_words) / (self.hard_max_words - self.max_words)
            score = max(0.0, 1.0 - beyond)
        return score


def _count(answer: Answer) -> int:
    return sum(len(sentence.words) for sentence in answer.sentences)
