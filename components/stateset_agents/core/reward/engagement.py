"""Is it a conversation, or are two people talking past each other?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stateset_agents.core.asking import asks
from stateset_agents.core.facts import root_of
from stateset_agents.core.feelings import is_glad, is_upset, notes_gladness, notes_upset
from stateset_agents.core.reward.base import RewardFunction, RewardResult
from stateset_agents.core.reward.conversation import Answer, answers_of
from stateset_agents.core.sentences import Sentence, content_words, is_content_word, ngrams
from stateset_agents.core.sentences import normalised_words as words_of
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.core.wordlists import COURTESY_WORDS

_ENOUGH_TAKEN_UP, _ENOUGH_ADDED = 2, 4
_NEW_PER_SENTENCE = 4
_LONG, _FAR_TOO_LONG = 90, 240  # words of one turn: beyond, it is a lecture
_OPENING = 4
_SAME_OPENING = 0.8
_LONGEST_GOODBYE = 25
_ASKS_FOR_ANYTHING = frozenset(("want", "know", "think", "say", "thing", "talk", "more", "happe"))


class EngagementReward(RewardFunction):
    """The mean over assistant turns of how well the answer keeps a conversation going.

    For each turn, over its prose only (word lists earn nothing):

        0.30 * takes_up  words of the user's last turn that come back; 2 suffice
      + 0.20 * adds      content words that nobody said before; 4 suffice, 4 a sentence at most
      + 0.35 * moves_on  1 for a question that names something new, 0.6 for one that names what
                         was said, 0.2 for one that names nothing ("is there anything else?" is no
                         question), 0.5 for a next step in "you can" or "we will"
      + 0.15 * attunes   notes the user's trouble or joy where there is any, once; without, 1 where
                         it does not apologise for nothing

    times: the share of its words in prose; 1 - echo of the user's word triples; a half where it
    says again what it said before; 0.8 where it opens as an earlier answer did; and, for more than
    90 words, a line falling to 0 at 240.
    Where the user says goodbye, a short reply with a farewell has 1, any other a third.
    Fooled by: questions for their own sake that use the user's words, and empathy without an end.
    """

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 0."""
        parts: list[dict[str, float]] = []
        said: frozenset[str] = frozenset()
        for answer in answers_of(turns, context):
            said |= _roots(answer.user_text)
            parts.append(_parts(answer, said))
            said |= _roots(answer.text)
        scores = [_turn_score(part) for part in parts]
        count = len(scores) or 1
        names = ("takes_up", "adds", "moves_on", "attunes", "factor")
        return RewardResult(
            score=sum(scores) / count,
            breakdown={name: sum(part[name] for part in parts) / count for name in names},
            turn_scores=scores,
        )


def _turn_score(part: dict[str, float]) -> float:
    value = 0.30 * part["takes_up"] + 0.20 * part["adds"]
    value += 0.35 * part["moves_on"] + 0.15 * part["attunes"]
    return value * part["factor"]


def _parts(answer: Answer, said: frozenset[str]) -> dict[str, float]:
    prose = [sentence for sentence in answer.sentences if sentence.reads_as_prose]
    factor = _factor(answer)
    if answer.closes:
        short = len(words_of(answer.text)) <= _LONGEST_GOODBYE
        polite = any(notes_gladness(sentence) or _thanks(sentence) for sentence in prose)
        value = 1.0 if short and polite else 1 / 3
        return dict.fromkeys(("takes_up", "adds", "moves_on", "attunes"), value) | {
            "factor": factor if prose else 0.0
        }
    asked = _roots(answer.user_text)
    own = _counted(prose, said)
    wanted = min(_ENOUGH_TAKEN_UP, len(asked))
    taken_up = len(own & asked) / wanted if wanted else float(bool(own))
    substance = min(1.0, len(own) / 2)  # manners alone attune to nobody
    return {
        "takes_up": min(1.0, taken_up),
        "adds": min(1.0, len(own - said) / _ENOUGH_ADDED),
        "moves_on": max((_moves_on(sentence, said) for sentence in prose), default=0.0),
        "attunes": _attunes(answer.user_text, prose) * substance,
        "factor": factor,
    }


def _attunes(user: str, prose: Sequence[Sentence]) -> float:
    noted = sum(notes_upset(sentence) for sentence in prose)
    if is_upset(user):
        return 1.0 if noted in (1, 2) else 0.0
    if is_glad(user):
        return 1.0 if any(notes_gladness(sentence) for sentence in prose) else 0.3
    return 1.0 if not noted else 0.3


def _moves_on(sentence: Sentence, said: frozenset[str]) -> float:
    if asks(sentence):
        named = _roots(" ".join(sentence.words)) - _ASKS_FOR_ANYTHING
        return 1.0 if named - said else (0.6 if named else 0.2)
    text = f" {' '.join(sentence.words)} "
    steps = (" you can ", " you could ", " we will ", " i will ", " next ", " then ", " let us ")
    return 0.5 if not sentence.is_question and any(step in text for step in steps) else 0.0


def _thanks(sentence: Sentence) -> bool:
    return bool({"thank", "thanks", "goodbye", "bye", "care", "anytime"} & set(sentence.words))


def _counted(prose: Sequence[Sentence], said: frozenset[str]) -> frozenset[str]:
    """Roots of the content words, at most so many new ones from each sentence."""
    own: set[str] = set()
    for sentence in prose:
        roots = [
            root_of(word)
            for word in sentence.stems
            if is_content_word(word) and word not in COURTESY_WORDS
        ]
        own.update(root for root in roots if root in said)
        fresh = [root for root in dict.fromkeys(roots) if root not in said and root not in own]
        own.update(fresh[:_NEW_PER_SENTENCE])
    return frozenset(own)


def _factor(answer: Answer) -> float:
    words = words_of(answer.text)
    if not words:
        return 0.0
    triples = ngrams(words, 3)
    user = set(ngrams(words_of(answer.user_text), 3))
    echo = sum(gram in user for gram in triples) / len(triples) if triples else 0.0
    value = answer.prose_share * (1 - max(0.0, (echo - 0.2) / 0.8))
    value *= min(1.0, max(0.0, (_FAR_TOO_LONG - len(words)) / (_FAR_TOO_LONG - _LONG)))
    earlier = [words_of(text) for text in answer.earlier]
    before = {gram for text in earlier for gram in ngrams(text, 3)}
    if triples and sum(gram in before for gram in triples) > 0.5 * len(triples):
        value *= 0.5
    if any(text[:_OPENING] == words[:_OPENING] for text in earlier):
        value *= _SAME_OPENING
    return value


def _roots(text: str) -> frozenset[str]:
    return frozenset(root_of(word) for word in content_words(text) - COURTESY_WORDS)
