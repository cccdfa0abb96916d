"""How much of an answer answers nothing?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stateset_agents.core.asking import asks
from stateset_agents.core.reward.base import RewardFunction, RewardResult
from stateset_agents.core.reward.conversation import (
    LEAST_OF_A_POLICY,
    Answer,
    answers_of,
    policy_text,
    rubric_of,
)
from stateset_agents.core.rubric import Rubric, meets
from stateset_agents.core.sentences import Sentence, content_words, split_sentences
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.core.wordlists import COURTESY_WORDS

_SHORT = 2  # "Of course.": so short that one of them in an answer is manners
_LONGEST_GOODBYE = 25
_ROOT = 5
_FROM_POLICY = ("ask_for", "state_fact", "stay_in_scope")
_LONGEST_REFUSAL = 16
# "We cannot make it faster, I am afraid." has three; an excuse that is made up has more.
_NEW_WORDS_OF_A_REFUSAL = 3
_GROUNDED_SHARE = 0.5  # reference answers: 97% of statements reach it; a model that drifts: 30%
# The speaker, or what was asked for, is what is denied: "we cannot", "that is not for me to say".
_REFUSES = re.compile(
    r" (?:i|we|it|this|that|there|you) (?:\w+ ){0,2}(?:cannot|not|no|never|unable|impossible)(?= )"
    r"|^ (?:no|(?:please )?do not)(?= )| not (?:possible|allowed|available|able|something) "
)
_NO_REFUSAL = re.compile(
    r" (?:(?:cannot|not|never) (?:\w+ )?(?:thank|wait|imagine|believe|agree)|"
    r"glad|happy|pleased|delighted|grateful) "
)
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
    - asks for something that it names;
    - states what can be held against the policy or the user's words: half of its content words, or
      more, are theirs (words of courtesy do not count), so what is made up is padding; without a
      policy of a dozen content words there is nothing to hold it to, and one of them is enough;
    - refuses in a few words ("we cannot do that"), the first of an answer that names nothing known,
      where something is to be refused: the rubric keeps to a scope, or a "not" stands in a line of
      the policy that meets it;
    - is courteous ("I am happy to help with your order"), and has two such words that no courteous
      sentence before it had, or is the first to lead on from a refusal.
    A "not" alone is no refusal: it makes nothing that is beside the point belong to it.
    So courtesy that comes again in other words is padding. So is a line of the policy that has
    nothing to do with it, whatever it says: a sentence with two words or more, and more than of all
    others, from lines that meet no item of the scenario's rubric and that no user has said.
    Manners are free: the first apology and the first thanks of a conversation, in each answer one
    sentence of two words, and a short reply to a user who says goodbye, where facts are padding.
    Meant as a gate of a `CompositeReward`. Fooled by: the right facts at the wrong turn and
    questions whose answer was given (the rubric knows which turn wants which), known words put
    together to something false, and courtesy that carries two new words of the user each time.
    """

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 1."""
        policy, rubric = policy_text(turns, context), rubric_of(context)
        applies = _what_applies(policy, rubric)
        known = _roots(policy)
        said = _Said(
            known=known,
            foreign=known - _roots(applies),
            grounded_share=_GROUNDED_SHARE if len(known) >= LEAST_OF_A_POLICY else 0.0,
            may_refuse=_wants_a_refusal(applies, rubric),
        )
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
        foreign: those that stand only in lines of the policy that do not apply.
        grounded_share: of a statement's content words that are known, at least.
        may_refuse: a refusal that names nothing known can be what is wanted.
        courteous: those of them that stood in courteous sentences of the assistant.
        manners: kinds of manners that the assistant has shown.
        refused: the answer that is read has refused something.
        free: what of it was free, and is so once an answer: a refusal that names nothing known, and
            courtesy that leads on from one.
    """

    known: frozenset[str]
    foreign: frozenset[str]
    grounded_share: float
    may_refuse: bool
    courteous: frozenset[str] = frozenset()
    manners: frozenset[str] = frozenset()
    refused: bool = False
    free: frozenset[str] = frozenset()

    def is_free_once(self, what: str) -> bool:
        """True the first time in an answer."""
        first = what not in self.free
        self.free |= {what}
        return first


def _what_applies(policy: str, rubric: Rubric | None) -> str:
    """The rubric's own words, and the sentences of the policy that meet an item of it; the whole
    policy without a rubric.
    """
    if rubric is None:
        return policy
    items = [item for item in rubric.items if item.kind in _FROM_POLICY]
    words = [phrase for item in items for phrases in item.any_of for phrase in phrases]
    sentences = [
        sentence.text
        for sentence in split_sentences(policy)
        if any(meets(item, sentence) for item in items)
    ]
    return "\n".join([*words, *sentences])


def _wants_a_refusal(applies: str, rubric: Rubric | None) -> bool:
    if rubric is None or any(item.kind == "stay_in_scope" for item in rubric.items):
        return True
    return any(sentence.negator_positions for sentence in split_sentences(applies))


def _padded_share(answer: Answer, said: _Said) -> float:
    """The share of an answer's words that stand in sentences beside the matter."""
    said.known |= _roots(answer.user_text)
    said.foreign -= _roots(answer.user_text)
    words = sum(len(sentence.words) for sentence in answer.sentences)
    is_goodbye = answer.closes and words <= _LONGEST_GOODBYE
    padded, short_ones = 0, 0
    said.refused, said.free = False, frozenset()
    for sentence in answer.sentences:
        shows_manners = _shows_new_manners(sentence, said)
        if is_goodbye:
            fits = bool(_COURTEOUS.search(sentence.stem_text))
        else:
            fits = _is_on_the_matter(sentence, said) or shows_manners
        if fits:
            said.refused |= bool(sentence.negator_positions)
            continue
        short_ones += len(sentence.words) <= _SHORT
        if len(sentence.words) > _SHORT or short_ones > 1:
            padded += len(sentence.words)
    return padded / words if words else 0.0


def _is_on_the_matter(sentence: Sentence, said: _Said) -> bool:
    words = _roots(sentence.text)
    known = words & said.known
    if len(words & said.foreign) > max(1, len(known - said.foreign)):
        return False
    if words and asks(sentence):
        return True
    is_grounded = bool(known) and len(known) >= said.grounded_share * len(words)
    if _refuses(sentence) and (is_grounded or _is_a_plain_refusal(words - known, said)):
        return True
    if not _COURTEOUS.search(sentence.stem_text):
        return is_grounded
    new = known - said.courteous
    said.courteous |= known
    return (is_grounded and len(new) > 1) or (said.refused and said.is_free_once("leading on"))


def _is_a_plain_refusal(made_up: frozenset[str], said: _Said) -> bool:
    return (
        said.may_refuse and len(made_up) <= _NEW_WORDS_OF_A_REFUSAL and said.is_free_once("refusal")
    )


def _refuses(sentence: Sentence) -> bool:
    text = sentence.stem_text
    return (
        bool(sentence.negator_positions)
        and len(sentence.words) <= _LONGEST_REFUSAL
        and bool(_REFUSES.search(text))
        and not _NO_REFUSAL.search(text)
    )


def _shows_new_manners(sentence: Sentence, said: _Said) -> bool:
    """True for the first apology and for the first thanks."""
    kinds = {kind for kind, pattern in _MANNERS.items() if pattern.search(sentence.stem_text)}
    new = bool(kinds - said.manners)
    said.manners |= kinds
    return new


def _roots(text: str) -> frozenset[str]:
    """Content words without those of courtesy, by their first letters: "dispatched" is dispatch."""
    return frozenset(word[:_ROOT] for word in content_words(text) - COURTESY_WORDS)
