"""How much of an answer answers nothing?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stateset_agents.core.asking import asks
from stateset_agents.core.reward.base import RewardFunction, RewardResult
from stateset_agents.core.reward.conversation import Answer, answers_of, policy_text
from stateset_agents.core.sentences import Sentence, content_words
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.core.wordlists import COURTESY_WORDS

_SHORT = 2  # "Of course.": so short that one of them in an answer is manners
_LONGEST_GOODBYE = 25
_ROOT = 5
_MANNERS = {
    "sorry": re.compile(r" (?:sorry|apologise|apologize|apology) "),
    "thanks": re.compile(r" (?:thank|thanks|appreciate) "),
}
_COURTEOUS = re.compile(
    r" (?:sorry|apologi\w+|thank|thanks|appreciate|help|assist|understand|happy|glad|welcome|"
    r"pleasure|hear|hope|feel|patience|inconvenience|trouble|let (?:me|us)|see what|"
    r"have a (?:nice|good|great|lovely)|enjoy|anything else|any question|another question|"
    r"reach out) "
)


class PaddingReward(RewardFunction):
    """1 where every sentence is on the matter, 0 where half of the words or more are padding.

    Per assistant turn `max(0, 1 - 2 * padding / words)`, the mean over turns. A sentence is on the
    matter when it
    - asks for something that it names, or refuses something;
    - has a word of the policy or of the user (words of courtesy do not count);
    - is courteous ("I am happy to help with your order"), and has two such words that no courteous
      sentence before it had, or leads on from a refusal.
    So courtesy that comes again in other words is padding. Manners are free: the first apology and
    the first thanks of a conversation, in each answer one sentence of two words, and a short reply
    to a user who says goodbye.
    Meant as a gate of a `CompositeReward`. Fooled by: true facts that nobody asked for and
    questions whose answer was given (the rubric knows which turn wants which), and courtesy that
    carries two new words of the user each time.
    """

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 1."""
        said = _Said(known=_roots(policy_text(turns, context)))
        shares = [_padded_share(answer, said) for answer in answers_of(turns, context)]
        scores = [max(0.0, 1 - 2 * share) for share in shares]
        return RewardResult(
            score=sum(scores) / len(scores) if scores else 1.0,
            breakdown={"padded_share": sum(shares) / len(shares) if shares else 0.0},
            turn_scores=scores,
        )


@dataclass(slots=True)
class _Said:
    """What a conversation has had so far; `_padded_share` adds to it.

    Attributes:
        known: roots of the content words of the policy and of the user.
        courteous: those of them that stood in courteous sentences of the assistant.
        manners: kinds of manners that the assistant has shown.
    """

    known: frozenset[str]
    courteous: frozenset[str] = frozenset()
    manners: frozenset[str] = frozenset()


def _padded_share(answer: Answer, said: _Said) -> float:
    """The share of an answer's words that stand in sentences beside the matter."""
    said.known |= _roots(answer.user_text)
    padded, short_ones = 0, 0
    refused = False
    for sentence in answer.sentences:
        shows_manners = _shows_new_manners(sentence, said)
        if _is_on_the_matter(sentence, said, refused) or shows_manners:
            refused |= bool(sentence.negator_positions)
            continue
        short_ones += len(sentence.words) <= _SHORT
        if len(sentence.words) > _SHORT or short_ones > 1:
            padded += len(sentence.words)
    words = sum(len(sentence.words) for sentence in answer.sentences)
    if words == 0 or (answer.closes and words <= _LONGEST_GOODBYE):
        return 0.0
    return padded / words


def _is_on_the_matter(sentence: Sentence, said: _Said, refused: bool) -> bool:
    words = _roots(sentence.text)
    if sentence.negator_positions or (words and asks(sentence)):
        return True
    known = words & said.known
    if not _COURTEOUS.search(sentence.stem_text):
        return bool(known)
    new = known - said.courteous
    said.courteous |= known
    return refused or len(new) > 1


def _shows_new_manners(sentence: Sentence, said: _Said) -> bool:
    """True for the first apology and for the first thanks."""
    kinds = {kind for kind, pattern in _MANNERS.items() if pattern.search(sentence.stem_text)}
    new = bool(kinds - said.manners)
    said.manners |= kinds
    return new


def _roots(text: str) -> frozenset[str]:
    """Content words without those of courtesy, by their first letters: "dispatched" is dispatch."""
    return frozenset(word[:_ROOT] for word in content_words(text) - COURTESY_WORDS)
