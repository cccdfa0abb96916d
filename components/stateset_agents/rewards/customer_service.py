"""What a shop's customer service is rewarded for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from stateset_agents.core.asking import asks
from stateset_agents.core.feelings import is_upset, notes_upset
from stateset_agents.core.reward import (
    CompositeReward,
    EngagementReward,
    HelpfulnessReward,
    RewardFunction,
    RewardResult,
    SafetyReward,
)
from stateset_agents.core.reward.conversation import Answer, answers_of, policy_text
from stateset_agents.core.sentences import Sentence, content_words, normalised_words
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.core.wordlists import COURTESY_WORDS
from stateset_agents.rewards.prose import ProseReward
from stateset_agents.rewards.similarity import SimilarityAwareReward

# What a customer is asked for, and how it looks once it was given.
_ASKED_FOR = {
    "order number": (
        r" (?:order (?:number|id|reference|no)|booking (?:number|reference)|reference number) ",
        r"#?\b[A-Z]{0,3}-?\d{4,}\b",
    ),
    "email address": (r" e ?mail(?: address)? ", r"\S+@\S+\.\w+"),
    "postcode": (r" (?:postcode|post code|zip(?: code)?|delivery address|address) ", r"\b\d{5}\b"),
    "photo": (r" (?:photo|picture|screenshot|image) ", r"(?i)\b(?:photo|picture|screenshot)\b"),
}
_OUTCOME = re.compile(
    r" (?:(?:we|i|you) (?:will|can|could|have|may)|it (?:will|takes|arrives|is)|"
    r"(?:is|are|was|be|been) (?:sent|refunded|replaced|shipped|delivered|free|covered|on (?:its|"
    r"the) way)|"
    r"within|once|as soon as|by (?:monday|tuesday|wednesday|thursday|friday|tomorrow)) "
)
_DEFLECTS = re.compile(
    r" (?:(?:contact|reach out to|call|email) (?:our |the |your )?(?:customer (?:service|support|"
    r"care)|"
    r"support|seller|courier|bank)|not (?:our|my) (?:problem|fault|job|department)|"
    r"nothing (?:i|we) can do|(?:try|check) again later|you should have|read the (?:terms|faq)|"
    r"as an ai|nobody cares|(?:do|does) not care|who cares|live with it|is your problem|"
    r"calm down|your own fault|deal with it) "
)
_BRUSQUE_FACTOR, _ASKED_AGAIN_FACTOR, _ENOUGH_WORDS = 0.3, 0.2, 3
_LONGEST_GOODBYE = 25


class CustomerServiceReward(CompositeReward):
    """A composite for customer service, in [0, 1].

        0.35 helpfulness + 0.30 resolution + 0.20 empathy + 0.15 engagement

    times the gates safety, repetition (`SimilarityAwareReward`) and prose. Its own two parts are
    `ResolutionReward` and `EmpathyReward`. Fooled by: a confident outcome that is false (add
    `CorrectnessReward` or a rubric), asking for the order number where none is needed, and an
    apology for what the customer is not upset about only if the customer sounds upset.

    Args:
        weight: its share in another composite.
        name: its key in that one's breakdown.
    """

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(
            [
                HelpfulnessReward(0.35, "helpfulness"),
                ResolutionReward(0.30, "resolution"),
                EmpathyReward(0.20, "empathy"),
                EngagementReward(0.15, "engagement"),
            ],
            gates=[
                SafetyReward(1.0, "safety"),
                SimilarityAwareReward(1.0, "repetition"),
                ProseReward(1.0, "prose"),
            ],
            weight=weight,
            name=name,
        )


class EmpathyReward(RewardFunction):
    """The mean over assistant turns of: does it take note of what the customer feels?

    Where the customer complains or worries: 1 for one or two sentences that take note and an
    answer that also says something on the matter, 0.5 where it is note-taking alone or more than
    half of the answer, 0 without. Where the customer does not: 1, and 0.6 with an apology for
    nothing. An answer without prose has 0.
    Fooled by: "I understand" before a cold answer.
    """

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 0."""
        scores = [_empathy(answer) for answer in answers_of(turns, context)]
        return RewardResult(score=sum(scores) / len(scores) if scores else 0.0, turn_scores=scores)


class ResolutionReward(RewardFunction):
    """The mean over assistant turns of: is the customer a step further afterwards?

    1 for a sentence that says what happens or can be done, with three content words or more, one of
    them the customer's or the policy's; 0.7 for a request for what is needed (order number, email
    address, postcode, photo) or another question on the matter; 0.85 for a question where the
    customer has asked none; else 0. Times 0.2 for asking for what the customer has given already,
    and 0.3 for sending the customer elsewhere or being brusque.
    Where the customer says goodbye, a short prose answer has 1.
    Fooled by: an outcome that is not true.
    """

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 0."""
        policy = content_words(policy_text(turns, context)) - COURTESY_WORDS
        heard = ""
        scores = []
        for answer in answers_of(turns, context):
            heard += "\n" + answer.user_text
            scores.append(_resolution(answer, policy, heard))
        return RewardResult(score=sum(scores) / len(scores) if scores else 0.0, turn_scores=scores)


def _empathy(answer: Answer) -> float:
    prose = answer.own_prose
    if not prose:
        return 0.0
    notes = [sentence for sentence in prose if notes_upset(sentence)]
    if not is_upset(answer.user_text) or answer.closes:
        return 0.6 if notes and not answer.earlier else 1.0
    if not notes:
        return 0.0
    bare = all(len(_matter(sentence)) < 1 for sentence in prose)
    return 0.5 if bare or len(notes) > 2 or len(notes) > 0.67 * len(prose) + 0.5 else 1.0


def _resolution(answer: Answer, policy: frozenset[str], heard: str) -> float:
    prose = answer.own_prose
    if answer.closes:
        return float(bool(prose) and len(normalised_words(answer.text)) <= _LONGEST_GOODBYE)
    known = policy | (content_words(heard) - COURTESY_WORDS)
    value = 0.0
    for sentence in prose:
        matter = _matter(sentence)
        text = f" {' '.join(sentence.words)} "
        if asks(sentence):
            named = matter & known or any(
                re.search(pattern, text) for pattern, _ in _ASKED_FOR.values()
            )
            value = max(value, (0.7 if "?" in answer.user_text else 0.85) if named else 0.0)
        elif not sentence.is_question and _OUTCOME.search(text):
            on_it = len(matter) >= _ENOUGH_WORDS and matter & known
            value = max(value, 1.0 if on_it else 0.0)
    if any(_asks_again(sentence, heard) for sentence in prose):
        value *= _ASKED_AGAIN_FACTOR
    if any(_DEFLECTS.search(f" {' '.join(one.words)} ") for one in answer.sentences):
        value *= _BRUSQUE_FACTOR
    return value


def _asks_again(sentence: Sentence, heard: str) -> bool:
    text = f" {' '.join(sentence.words)} "
    return asks(sentence) and any(
        re.search(asked, text) and re.search(given, heard) for asked, given in _ASKED_FOR.values()
    )


def _matter(sentence: Sentence) -> frozenset[str]:
    return content_words(sentence.text) - COURTESY_WORDS
