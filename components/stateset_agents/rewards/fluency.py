"""Are the answers made of sentences?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stateset_agents.core.reward.base import RewardFunction, RewardResult
from stateset_agents.core.reward.conversation import Answer, answers_of
from stateset_agents.core.sentences import Sentence
from stateset_agents.core.trajectory import ConversationTurn

_TELLING_WORDS = 6  # fewer say nothing about whether a sentence was on its way


class FluencyReward(RewardFunction):
    """The share of an answer's words that stand in well-formed sentences, mean over its turns.

    Well formed, see `core.sentences`: 2 to 40 words, a verb, function words among them, no word
    said over and over, no bare list. A last sentence that the token limit broke off, and that might
    have become well formed, is left out of the count (the gate `finished` sees to that); an answer
    without any finished sentence has 0.
    Meant as a gate of a `CompositeReward`. Fooled by: grammatical nonsense. How likely the answers
    are under the base model is for evaluation to say.
    """

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 0."""
        scores = [_share(answer) for answer in answers_of(turns, context)]
        return RewardResult(score=sum(scores) / len(scores) if scores else 0.0, turn_scores=scores)


def _share(answer: Answer) -> float:
    sentences = list(answer.sentences)
    if sentences and not sentences[-1].ending and _may_go_on(sentences[-1]):
        sentences.pop()
    counted = sum(len(sentence.words) for sentence in sentences)
    good = sum(len(sentence.words) for sentence in sentences if not sentence.fault)
    return good / counted if counted else 0.0


def _may_go_on(sentence: Sentence) -> bool:
    """True for what could be the beginning of a plain sentence."""
    return len(sentence.words) < _TELLING_WORDS or not replace(sentence, ending=".").fault
