"""What a sentence claims, as far as words and numbers go, and whether it goes with what is known.

Owns quantities (a number and what it counts), the words that tell one fact from another, and when
two statements contradict each other. It knows no rewards. Surface heuristics for English: a
paraphrase without a word in common is no fact to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from stateset_agents.core.sentences import Sentence, is_content_word, split_sentences
from stateset_agents.core.wordlists import COURTESY_WORDS, FUNCTION_WORDS

_ROOT = 5
_MATCHING_SHARE = 0.5
_CLOCK = re.compile(r"\b(\d{1,2}):(\d{2})\b")
_JSON_MARKS = re.compile(r"[{}\[\]\"]|_(?=\w)")
_NAME = re.compile(r"(?<![.!?:] )(?<!^)\b([A-Z][a-z]{2,}|[A-Z]{2,})\b")
# "Not after 30 days" and "within 30 days" are one limit: a "not" beside these decides nothing.
_LIMITS = frozenset(
    ("after", "beyond", "past", "over", "unless", "until", "except", "exceed", "than", "only")
)
# Roots of what is measured in: "5 weeks" do not say "5 days".
_MEASURES = frozenset(
    ("secon", "minut", "hour", "day", "night", "week", "month", "year", "euro", "dolla", "pound",
     "cent", "perce", "meter", "metre", "gram", "kilo", "liter", "litre", "mile")
)  # fmt: skip
# A sentence with one of these does not stand by what it says.
_DOUBTS = re.compile(
    r" (?:doubt|doubtful|mistaken|used to (?:be|take|cost|have)|anything but|far from|rumou?r|"
    r"(?:some|people|many|they) (?:people )?(?:say|claim|think|believe)|supposedly|allegedly|myth|"
    r"unlikely|hardly|not sure|(?:is|was|be) (?:wrong|false|untrue)|not true|incorrect|"
    r"if only|i wish) "
)
_TAKES_BACK = re.compile(
    r"^ (?:no |well |but |actually |sorry )*(?:that|this|it|which) (?:is|was) "
    r"(?:wrong|false|untrue|not (?:true|right|correct)|incorrect|a (?:lie|mistake|joke)|nonsense) "
)
_SPELT = {"half": "0.5", "dozen": "12", "hundred": "100", "thousand": "1000", "million": "1000000"}
# Qualifiers of a unit, not units: "5 working days" counts days.
_QUALIFIERS = frozenset(("working", "business", "calendar", "full", "whole", "about", "percentage"))
_OPPOSITES = (
    ("free", "paid"), ("open", "closed"), ("before", "after"), ("always", "never"),
    ("include", "exclude"), ("allow", "forbid"), ("allowed", "forbidden"), ("accept", "refuse"),
    ("minimum", "maximum"), ("first", "last"), ("increase", "decrease"), ("rise", "fall"),
    ("morning", "evening"), ("true", "false"), ("possible", "impossible"), ("north", "south"),
    ("east", "west"), ("left", "right"), ("hot", "cold"), ("high", "low"), ("buyer", "seller"),
    ("customer", "shop"), ("online", "offline"), ("safe", "dangerous"), ("required", "optional"),
    ("valid", "invalid"), ("earlier", "later"), ("more", "less"), ("above", "below"),
    ("cheaper", "dearer"), ("new", "used"), ("encrypted", "unencrypted"), ("weekday", "weekend"),
)  # fmt: skip
_OPPOSITE = {a: b for pair in _OPPOSITES for a, b in (pair, pair[::-1])}

Verdict = Literal["agrees", "contradicts", "unknown"]


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number and the roots of what it may count: of the words around it, the nearest first."""

    value: str
    units: tuple[str, ...]


@dataclass(frozen=True)
class Statement:
    """One sentence as a claim; `names` are the roots of words with a capital inside it."""

    sentence: Sentence
    names: frozenset[str]

    @cached_property
    def roots(self) -> frozenset[str]:
        """Roots of its content words; courtesy and numbers left out."""
        return frozenset(
            root_of(word)
            for word in self.sentence.stems
            if is_content_word(word) and word not in COURTESY_WORDS and not word[0].isdigit()
        )

    @cached_property
    def quantities(self) -> tuple[Quantity, ...]:
        """Its numbers in order."""
        words = [_SPELT.get(word, word) for word in self.sentence.stems]
        return tuple(
            Quantity(word, _units(words, position))
            for position, word in enumerate(words)
            if word[0].isdigit()
        )

    @cached_property
    def topic(self) -> frozenset[str]:
        """`roots` without what its numbers count."""
        return self.roots - {unit for quantity in self.quantities for unit in quantity.units}

    def denies(self, roots: frozenset[str]) -> bool:
        """True when half of these roots or more stand in a clause with a "not"."""
        clauses = self.sentence.clause_ids
        denied = {clauses[position] for position in self.sentence.negator_positions}
        hit = {
            root_of(word)
            for word, clause in zip(self.sentence.stems, clauses, strict=True)
            if clause in denied
        }
        return bool(hit & roots) and 2 * len(hit & roots) >= len(roots)


def root_of(word: str) -> str:
    """A word's first five letters: "refund", "refunded" and "refunds" are one; numbers stay."""
    return word if word[0].isdigit() else word[:_ROOT]


def statements_of(text: str) -> list[Statement]:
    """The sentences of a text as claims, unfinished ones too, questions left out."""
    text = _JSON_MARKS.sub(" ", _CLOCK.sub(r"\1h\2", text))
    return [
        Statement(sentence, names_in(sentence.text))
        for sentence in split_sentences(text)
        if not sentence.is_question and sentence.words
    ]


def names_in(text: str) -> frozenset[str]:
    """Roots of the words with a capital that do not open a sentence."""
    return frozenset(
        root_of(name.lower()) for name in _NAME.findall(text) if name.lower() not in FUNCTION_WORDS
    )


def states(claim: Statement, fact: Statement, said: frozenset[str] = frozenset()) -> bool:
    """True when `claim` says `fact`: all of its numbers and names, half of its other words, and
    neither denies what the other affirms.

    Args:
        claim: what was said.
        fact: what is true.
        said: roots of what the user just said, which an answer need not say again.
    """
    if any(not _is_counted(quantity, claim) for quantity in fact.quantities):
        return False
    if _DOUBTS.search(claim.sentence.stem_text) and not _DOUBTS.search(fact.sentence.stem_text):
        return False
    names = fact.names - said
    if not names <= claim.roots:
        return False
    wanted = fact.topic - names
    known = len(wanted & (claim.roots | said))
    if known < _MATCHING_SHARE * len(wanted):
        return False
    shared = (wanted | fact.names) & claim.roots
    shared |= {quantity.value for quantity in fact.quantities}
    if not (names or shared):
        return False
    if shared and claim.denies(shared) != fact.denies(shared) and not _limits(claim, fact):
        return False
    return verdict(claim, [fact]) != "contradicts"


def takes_back(claim: Statement) -> bool:
    """True for "that is wrong": it denies what was said right before it."""
    return bool(_TAKES_BACK.search(claim.sentence.stem_text))


def _is_counted(quantity: Quantity, claim: Statement) -> bool:
    """True when the claim has the number, and not of another measure."""
    measures = _MEASURES.intersection(quantity.units)
    return any(
        other.value == quantity.value
        and (not measures or not _MEASURES.intersection(other.units) or measures <= {*other.units})
        for other in claim.quantities
    )


def verdict(
    claim: Statement, facts: Sequence[Statement], heard: Sequence[Statement] = ()
) -> Verdict:
    """Does a claim agree with what is known?

    It contradicts when the facts closest to it count the same thing with another number, when it
    denies what the closest fact affirms (or the other way round), or puts a word's opposite in its
    place. It agrees when half of its words are known and all of its numbers, from the facts or from
    what was `heard`, which it cannot contradict. Else it is unknown.
    """
    if not facts:
        return "unknown"
    if any(_other_number(quantity, claim, facts) for quantity in claim.quantities):
        return "contradicts"
    if any(_turned_round(claim, fact) for fact in facts):
        return "contradicts"
    known = frozenset().union(*(one.roots for one in (*facts, *heard)))
    values = {quantity.value for one in (*facts, *heard) for quantity in one.quantities}
    if any(quantity.value not in values for quantity in claim.quantities):
        return "unknown"
    return "agrees" if len(claim.roots & known) >= _MATCHING_SHARE * len(claim.roots) else "unknown"


def _units(words: Sequence[str], position: int) -> tuple[str, ...]:
    """The first word behind the number that may be a unit; else the word before ("version 4")."""
    for word in words[position + 1 : position + 5]:
        if word[0].isdigit() or word in {"to", "or", "and"} | _QUALIFIERS:
            continue
        if word in FUNCTION_WORDS:
            break
        return (root_of(word),)
    before = words[position - 1] if position else ""
    return (root_of(before),) if before and is_content_word(before) else ()


def _other_number(quantity: Quantity, claim: Statement, facts: Sequence[Statement]) -> bool:
    """True when the facts closest in words count the same thing, and none has this number."""
    same = [
        fact
        for fact in facts
        if any(set(quantity.units) & set(known.units) for known in fact.quantities)
    ]
    if not same:
        return False
    closest = max(len(fact.topic & claim.topic) for fact in same)
    if closest == 0 and len(same) > 1:
        return False
    said = {other.value for other in claim.quantities}  # "30 days to return, 5 to be paid"
    return not any(
        known.value in said
        for fact in same
        if len(fact.topic & claim.topic) == closest
        for known in fact.quantities
    )


def _limits(claim: Statement, fact: Statement) -> bool:
    """True when one of the two sets a limit, beside which a "not" decides nothing."""
    return bool(_LIMITS & (set(claim.sentence.words) ^ set(fact.sentence.words)))


def _turned_round(claim: Statement, fact: Statement) -> bool:
    shared = fact.roots & claim.roots
    if len(shared) >= 2 and len(shared) >= 0.6 * min(len(fact.roots), len(claim.roots)):
        turned = claim.denies(shared) != fact.denies(shared)
        if turned and not _limits(claim, fact):
            return True
    own, others = set(claim.sentence.stems), set(fact.sentence.stems)
    close = len(shared) >= max(1.0, _MATCHING_SHARE * (len(fact.roots) - 1))
    return close and any(
        _OPPOSITE.get(word) in others and word not in others and _OPPOSITE[word] not in own
        for word in own
    )
