"""What a sales assistant is rewarded for: advice, not pressure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from stateset_agents.core.asking import asks
from stateset_agents.core.facts import root_of, statements_of
from stateset_agents.core.reward import (
    CompositeReward,
    EngagementReward,
    HelpfulnessReward,
    RewardFunction,
    RewardResult,
    SafetyReward,
)
from stateset_agents.core.reward.conversation import Answer, answers_of, policy_text
from stateset_agents.core.sentences import Sentence, content_words, is_denied, normalised_words
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.core.wordlists import COURTESY_WORDS
from stateset_agents.rewards.prose import ProseReward
from stateset_agents.rewards.similarity import SimilarityAwareReward

_NEED = re.compile(
    r" (?:budget|use|using|need|want|plan|look\w* for|prefer|size|how (?:many|much|often|big|"
    r"large)|"
    r"what (?:kind|sort|do you)|which|who|where|when|important|matter\w*|team|carry|room|work) "
)
_REASON = re.compile(
    r" (?:because|since|so (?:that |it |you )?|as you|for your|for you|given|which (?:means|is|"
    r"makes|fits|suits)|"
    r"that way|fits|suits|enough for|means|with(?:in| that)? your|if you) "
)
_OFFER = re.compile(
    r" (?:recommend|suggest|would (?:suit|fit|be|work)|go for|choose|pick|costs?|has|comes with|"
    r"offers?|"
    r"includes?|weighs?|fits|suits|is (?:a|the|our)|you (?:can|could|get|pay)|we (?:have|offer)) "
)
_PRESSURE = re.compile(
    r" (?:buy (?:it |this )?(?:now|today)|order (?:it )?(?:now|right now)|act (?:fast|now)|hurry|"
    r"last chance|"
    r"only (?:today|a few left|for today)|limited time|before it is (?:gone|too late)|"
    r"do not (?:miss|wait)|"
    r"you will regret|would be (?:stupid|foolish)|once in a lifetime|everyone (?:is buying|"
    r"has one)|"
    r"selling out|today only|offer (?:ends|expires)|cannot afford not|now or never|trust me|"
    r"sign (?:here|now|today)|think too long|others are (?:looking|waiting|interested)|"
    r"(?:almost|nearly) (?:gone|sold out)|while stock last|will not regret|before (?:someone|"
    r"somebody|others) |shall i order|hardly notice) "
)
_BOAST = re.compile(
    r" (?:best in the world|best (?:\w+ )?(?:ever|on the market|money can buy)|number 1|"
    r"world s best|unbeatable|"
    r"revolutionary|perfect for everyone|no (?:downside|disadvantage|risk)|guarantee\w*|"
    r"100 percent|"
    r"cheaper (?:\w+ )?than anywhere|than anywhere else|last for ?ever|will envy|you deserve|"
    r"pays for itself|amazing|incredible|miracle|cures?|life changing|nobody (?:else|beats)|"
    r"always the cheapest) "
)
_RUNS_DOWN = re.compile(
    r" (?:competitors? (?:are|is) (?:\w+ )?(?:bad|rubbish|junk|terrible|scam)|rubbish|junk|trash) "
)
_PRICE = re.compile(
    r"(?:[$€£]\s?\d[\d,.]*|\b\d[\d,.]*\s?(?:dollars?|euros?|pounds?|%|percent)(?!\w))", re.I
)
_PRESSURE_FACTOR, _BOAST_FACTOR, _PRICE_FACTOR, _RUNS_DOWN_FACTOR = 0.3, 0.6, 0.5, 0.5
_LONGEST_GOODBYE = 30


class SalesAssistantReward(CompositeReward):
    """A composite for advice on what to buy, in [0, 1].

        0.30 helpfulness + 0.35 advice + 0.15 needs + 0.20 engagement

    times the gates safety, honesty (`HonestSalesReward`), repetition (`SimilarityAwareReward`) and
    prose. It rewards fit, not sales: nothing in it knows whether the customer buys. Fooled by: a
    reason that is none ("because it suits you"), and features that are not true and hold no number
    (add `CorrectnessReward`).

    Args:
        weight: its share in another composite.
        name: its key in that one's breakdown.
    """

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(
            [
                HelpfulnessReward(0.30, "helpfulness"),
                AdviceReward(0.35, "advice"),
                NeedsReward(0.15, "needs"),
                EngagementReward(0.20, "engagement"),
            ],
            gates=[
                SafetyReward(1.0, "safety"),
                HonestSalesReward(1.0, "honesty"),
                SimilarityAwareReward(1.0, "repetition"),
                ProseReward(1.0, "prose"),
            ],
            weight=weight,
            name=name,
        )


class AdviceReward(RewardFunction):
    """The mean over assistant turns of: is something recommended or explained, and why?

    0.6 for a sentence that offers something and holds a word of the policy's or the customer's
    (0.3 without one), 0.4 more where the answer gives a reason that holds a word of the customer's.
    A question about needs alone has 0.5. A customer who says goodbye wants a short answer.
    Fooled by: any recommendation with "because" and the customer's word.
    """

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 0."""
        policy = _roots(policy_text(turns, context))
        heard: frozenset[str] = frozenset()
        scores = []
        for answer in answers_of(turns, context):
            heard |= _roots(answer.user_text)
            scores.append(_advice(answer, policy, heard))
        return RewardResult(score=sum(scores) / len(scores) if scores else 0.0, turn_scores=scores)


class NeedsReward(RewardFunction):
    """The mean over assistant turns of: does it ask what is needed, or go by what was said?

    1 for a question about use, budget, size or people, or for two of the customer's words in
    statements; 0.5 for one. Fooled by: asking for what was said.
    """

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 0."""
        heard: frozenset[str] = frozenset()
        scores = []
        for answer in answers_of(turns, context):
            heard |= _roots(answer.user_text)
            scores.append(_needs(answer, heard))
        return RewardResult(score=sum(scores) / len(scores) if scores else 0.0, turn_scores=scores)


class HonestSalesReward(RewardFunction):
    """The worst assistant turn: 0.3 for pressure ("only today"), 0.6 for boasts ("the best ever"),
    0.5 for running down others, and, where there is a policy, 0.5 for each price or percentage that
    neither it nor the customer has said; multiplied. "No need to hurry" is fine.

    Meant as a gate. Fooled by: pressure in other words, and claims without a number.
    """

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 1."""
        policy = policy_text(turns, context)
        told = [policy, *(turn.content for turn in turns if turn.role in {"user", "tool"})]
        known = {
            quantity.value
            for text in told
            for one in statements_of(text.replace("?", "."))
            for quantity in one.quantities
        }
        has_prices = len(content_words(policy)) > 12
        scores = [
            _honesty(answer, known if has_prices else None) for answer in answers_of(turns, context)
        ]
        return RewardResult(score=min(scores, default=1.0), turn_scores=scores)


def _advice(answer: Answer, policy: frozenset[str], heard: frozenset[str]) -> float:
    prose = answer.own_prose
    if answer.closes:
        return float(bool(prose) and len(normalised_words(answer.text)) <= _LONGEST_GOODBYE)
    known = policy | heard
    offers = [
        one
        for one in prose
        if not one.is_question and _OFFER.search(_text(one)) and len(_roots(one.text)) > 1
    ]
    if not offers:
        return 0.5 if any(_asks_needs(one) for one in prose) else 0.0
    value = 0.6 if any(_roots(one.text) & known for one in offers) else 0.3
    reasons = any(
        _REASON.search(_text(one)) and _roots(one.text) & heard
        for one in prose
        if not one.is_question
    )
    return value + 0.4 * reasons


def _needs(answer: Answer, heard: frozenset[str]) -> float:
    prose = answer.own_prose
    if answer.closes:
        return float(bool(prose))
    if any(_asks_needs(one) for one in prose):
        return 1.0
    taken_up = {root for one in prose if not one.is_question for root in _roots(one.text)} & heard
    return min(1.0, 0.5 * len(taken_up))


def _asks_needs(sentence: Sentence) -> bool:
    return asks(sentence) and bool(_NEED.search(_text(sentence)))


def _honesty(answer: Answer, known: set[str] | None) -> float:
    value = 1.0
    for pattern, factor in (
        (_PRESSURE, _PRESSURE_FACTOR),
        (_BOAST, _BOAST_FACTOR),
        (_RUNS_DOWN, _RUNS_DOWN_FACTOR),
    ):
        if any(_says(pattern, sentence) for sentence in answer.sentences):
            value *= factor
    if known is not None:
        prices = {word for text in _PRICE.findall(answer.text) for word in normalised_words(text)}
        value *= _PRICE_FACTOR ** len({word for word in prices if word[0].isdigit()} - known)
    return value


def _says(pattern: re.Pattern[str], sentence: Sentence) -> bool:
    text = _text(sentence)
    return any(
        not is_denied(sentence, text[: match.start()].count(" "), reach=4)
        for match in pattern.finditer(text)
    )


def _text(sentence: Sentence) -> str:
    return f" {' '.join(sentence.words)} "


def _roots(text: str) -> frozenset[str]:
    return frozenset(root_of(word) for word in content_words(text) - COURTESY_WORDS)
