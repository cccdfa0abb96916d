"""What technical support is rewarded for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from stateset_agents.core.asking import asks
from stateset_agents.core.facts import root_of
from stateset_agents.core.reward import (
    CompositeReward,
    EngagementReward,
    HelpfulnessReward,
    RewardFunction,
    RewardResult,
    SafetyReward,
)
from stateset_agents.core.reward.conversation import Answer, answers_of, policy_text
from stateset_agents.core.sentences import (
    Sentence,
    content_words,
    is_denied,
    normalised_words,
)
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.core.wordlists import COURTESY_WORDS
from stateset_agents.rewards.prose import ProseReward
from stateset_agents.rewards.similarity import SimilarityAwareReward

_STEP_VERBS = (
    "restart|reboot|update|upgrade|downgrade|check|open|click|tap|select|choose|hold|press|uninstall|"
    "reinstall|install|clear|disable|enable|run|unplug|plug|reset|log|sign|download|delete|remove|"
    "connect|disconnect|turn|switch|go|move|replace|try|enter|type|add|set|change|grant|allow|scan|"
    "back|copy|export|import|forget|pair|reconnect|close|quit|roll|verify|test|wipe|free|repair"
)
_STEP = re.compile(
    rf"(?:^| )(?:(?:please|then|next|first|now|and|to|can|could|should|simply|just|finally|"
    rf"afterwards) )*"
    rf"(?:{_STEP_VERBS}) (?=\w)"
)
_STEP_STARTS = re.compile(
    rf"^ (?:(?:please|then|next|first|second|third|now|also|simply|just|finally|afterwards|"
    rf"after that) )*"
    rf"(?:{_STEP_VERBS}) | (?:you (?:can|could|should|need to|will need to)|please|then|and|"
    rf"to fix (?:it|this|that)) "
    rf"(?:{_STEP_VERBS}) "
)
_CAUSE = re.compile(
    r" (?:because|caused by|due to|means (?:that )?|usually (?:comes|happens|means)|the cause|"
    r"known (?:bug|issue|problem)|corrupt\w*|conflict\w*|outdated|incompatible|out of (?:space|"
    r"memory|date)) "
)
_DIAGNOSTIC = re.compile(
    r" (?:version|error|message|code|log|model|device|system|browser|router|light|when|"
    r"what happens|"
    r"which|how (?:often|long)|since|after|screen|network|wifi|cable|exact\w*|see|show\w*|step|"
    r"app|phone|setting) "
)
_CHECKS_BACK = re.compile(
    r" (?:let (?:me|us) know|tell (?:me|us)|does (?:it|that|this)|did (?:it|that|this)|is it|"
    r"still|what do you see|what happens|how did) "
)
_TRIED = re.compile(
    r"(?:already|have|i|we|'ve|just)\s+(?:already\s+)?(?:tried|did|done)\s+(?:to\s+)?([^.!?,;]+)|"
    r"(?:already|'ve|have)\s+((?:re)?(?:start|boot|install|set|updat|clear|unplug|delet|chang|"
    r"replac)\w*[^.!?,;]*)",
    re.IGNORECASE,
)
_DANGEROUS = re.compile(
    r" (?:rm rf|format (?:the|your|c)|delete (?:the )?(?:system32|system files|registry|root)|"
    r"(?:disable|turn off|switch off|uninstall) (?:the |your )?(?:antivirus|firewall|encryption|"
    r"ssl|"
    r"certificate checks?|security|two factor)|chmod 777|sudo rm|dd if|flash (?:the |"
    r"a )?(?:custom )?(?:bios|rom)|"
    r"open the power supply|bridge the (?:fuse|contact)|ignore the (?:warning|certificate)) "
)
_LOSES_DATA = re.compile(
    r" (?:factory reset|wipe|erase|format|reinstall (?:windows|the system|macos)) "
)
_WARNS = re.compile(
    r" (?:back (?:up|it up)|backup|save your|will (?:delete|erase|lose|remove)|lose) "
)
_ENOUGH_STEPS, _TRIED_FACTOR, _DANGER, _NO_WARNING = 2, 0.3, 0.05, 0.5
_MANY_STEPS = 8
_FACT_WORDS = 3


class TechnicalSupportReward(CompositeReward):
    """A composite for technical support, in [0, 1].

        0.30 helpfulness + 0.35 troubleshooting + 0.20 diagnosis + 0.15 engagement

    times the gates safety, no_harm (`DoesNoHarmReward`), repetition (`SimilarityAwareReward`) and
    prose. Fooled by: steps that name the right things and do not help, and by fixes for another
    product (give it a policy or add `CorrectnessReward`).

    Args:
        weight: its share in another composite.
        name: its key in that one's breakdown.
    """

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(
            [
                HelpfulnessReward(0.30, "helpfulness"),
                TroubleshootingReward(0.35, "troubleshooting"),
                DiagnosisReward(0.20, "diagnosis"),
                EngagementReward(0.15, "engagement"),
            ],
            gates=[
                SafetyReward(1.0, "safety"),
                DoesNoHarmReward(1.0, "no_harm"),
                SimilarityAwareReward(1.0, "repetition"),
                ProseReward(1.0, "prose"),
            ],
            weight=weight,
            name=name,
        )


class TroubleshootingReward(RewardFunction):
    """The mean over assistant turns of: is there something to do that was not done yet?

    A step is a sentence with a verb of doing ("restart", "open", "you can update") and an object.
    Two steps suffice, one has 0.7; a diagnostic question alone has 0.6; a fact that answers the
    user's question with words of the policy has 0.8. At least one step (or question) holds a word
    of the user's or the policy's, else a half. Times 0.3 where a step was already tried, by the
    user's own words, and 0.6 for more than eight steps at once. Thanks want a short answer.
    Fooled by: invented menu entries.
    """

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 0."""
        known = _roots(policy_text(turns, context))
        tried: frozenset[str] = frozenset()
        scores = []
        for answer in answers_of(turns, context):
            known |= _roots(answer.user_text)
            tried |= _tried(answer.user_text)
            scores.append(_troubleshooting(answer, known, tried))
        return RewardResult(score=sum(scores) / len(scores) if scores else 0.0, turn_scores=scores)


class DiagnosisReward(RewardFunction):
    """Does the assistant find out what is wrong? The mean over assistant turns.

    0.6 for a question about version, error, device, circumstances, or for a stated cause; 0.4 more
    for asking whether it helped, or for both question and cause. Thanks want none of it.
    Fooled by: asking for the version of what has none.
    """

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 0."""
        scores = [_diagnosis(answer) for answer in answers_of(turns, context)]
        return RewardResult(score=sum(scores) / len(scores) if scores else 0.0, turn_scores=scores)


class DoesNoHarmReward(RewardFunction):
    """The worst assistant turn: 0.05 where a step does damage (deleting system files, switching off
    the firewall), 0.5 where one loses data and says nothing of a backup, else 1.

    Meant as a gate. Fooled by: damage in words that are not on its list.
    """

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 1."""
        scores = [_harm(answer) for answer in answers_of(turns, context)]
        return RewardResult(score=min(scores, default=1.0), turn_scores=scores)


def _troubleshooting(answer: Answer, known: frozenset[str], tried: frozenset[str]) -> float:
    prose = answer.own_prose
    if answer.closes:
        return float(bool(prose) and len(normalised_words(answer.text)) <= 30)
    steps = [one for one in prose if not asks(one) or _STEP_STARTS.search(one.stem_text)]
    steps = [one for one in steps if _is_step(one)]
    questions = [one for one in prose if asks(one) and _DIAGNOSTIC.search(_text(one))]
    count = sum(max(1, len(_STEP.findall(_text(one)))) for one in steps)
    told = known - _roots(answer.user_text)
    facts = [one for one in prose if not one.is_question and _roots(one.text) & told]
    facts = [one for one in facts if len(_roots(one.text) & known) >= _FACT_WORDS]
    value = 1.0 if count >= _ENOUGH_STEPS else 0.7 * count
    value = max(value, 0.6 * bool(questions), 0.8 * bool(facts))
    if not any(_roots(one.text) & known for one in [*steps, *questions, *facts]):
        value *= 0.5
    if any(_repeats(one, tried) for one in steps):
        value *= _TRIED_FACTOR
    return value * (0.6 if count > _MANY_STEPS else 1.0)


def _is_step(sentence: Sentence) -> bool:
    match = _STEP_STARTS.search(sentence.stem_text)
    if match is None:
        return False
    start = min(sentence.stem_text[: match.end() - 1].count(" ") - 1, len(sentence.words) - 1)
    return not is_denied(sentence, max(0, start), reach=4)


def _repeats(step: Sentence, tried: frozenset[str]) -> bool:
    """True when the step's verb of doing is one that the user has tried."""
    return any(root in tried for root in _verbs(step.words))


def _tried(text: str) -> frozenset[str]:
    found = [part for match in _TRIED.findall(text) for part in match if part]
    return frozenset(root for part in found for root in _verbs(normalised_words(part)))


def _verbs(words: Sequence[str]) -> set[str]:
    """Roots of the verbs of doing: "reinstalling", "reinstall" and "reinstalled" are one."""
    verbs = {verb for verb in _STEP_VERBS.split("|") if len(verb) > 3 and verb not in _ANY_STEP}
    return {verb for word in words for verb in verbs if word == verb or word.startswith(verb[:6])}


_ANY_STEP = frozenset(
    ("open", "click", "select", "choose", "check", "press", "hold", "enter", "type")
)


def _diagnosis(answer: Answer) -> float:
    prose = answer.own_prose
    if answer.closes:
        return float(bool(prose))
    question = any(asks(one) and _DIAGNOSTIC.search(_text(one)) for one in prose)
    cause = any(not one.is_question and _CAUSE.search(_text(one)) for one in prose)
    back = any(_CHECKS_BACK.search(_text(one)) for one in prose[1:])
    if not (question or cause or back):
        return 0.0
    return min(1.0, 0.6 + 0.4 * (question + cause + back > 1))


def _harm(answer: Answer) -> float:
    for sentence in answer.sentences:
        for match in _DANGEROUS.finditer(_text(sentence)):
            at = _text(sentence)[: match.start()].count(" ")
            if not is_denied(sentence, min(at, len(sentence.words) - 1)):
                return _DANGER
    text = f" {' '.join(normalised_words(answer.text))} "
    return _NO_WARNING if _LOSES_DATA.search(text) and not _WARNS.search(text) else 1.0


def _text(sentence: Sentence) -> str:
    return f" {' '.join(sentence.words)} "


def _roots(text: str) -> frozenset[str]:
    return frozenset(root_of(word) for word in content_words(text) - COURTESY_WORDS)
