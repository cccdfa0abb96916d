"""What a good answer must do, checkable without a model.

Owns the rubric's schema and how an item is checked against an assistant's words. It does not know
files (room `data` reads them) nor weights between rewards (`core.reward`).

An item is met by one plain sentence or not at all: keywords strewn about, a question where a
statement is due, a denied fact, a sentence said twice or broken off meet nothing. What this cannot
see: whether the rest of the answer is true. A policy that states the right fact and, a sentence
later, a wrong one meets the item; write a `must_not` for the wrong ones that matter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stateset_agents.core.asking import asks
from stateset_agents.core.sentences import (
    Sentence,
    is_denied,
    normalised_words,
    split_sentences,
)
from stateset_agents.core.wordlists import NEGATORS

RubricKind = Literal["ask_for", "state_fact", "acknowledge", "stay_in_scope", "must_not"]

ITEMS_PER_SENTENCE = 2
VIOLATION_FACTOR = 0.5

# "We cannot take it back after 30 days" states the limit of 30 days, it does not deny it.
_LIMIT_WORDS = "after beyond past passed outside over unless until except exceed than once when if"
_LIMITS = frozenset(_LIMIT_WORDS.split())
_CONDITIONS = frozenset(("when", "if", "once", "unless", "until"))
_DENIED_AFTERWARDS = re.compile(
    r" (?:is|are|was|were|will be|be) not(?: \w+)? (?:accepted|allowed|possible|available|offered|"
    r"true|correct|valid|eligible|permitted|right|included|refundable|case|policy) "
    r"| cannot be | (?:is|are) (?:impossible|false|wrong|untrue) "
)
_DENIED_OUTRIGHT = re.compile(r" (?:is|are|was|were) not | cannot | will not | (?:is|are) against ")


class RubricItem(BaseModel):
    """One thing an answer must do, or must not.

    `any_of` are alternatives. Each alternative is a list of words or phrases that must all occur in
    *one* sentence of the answer (case and punctuation are ignored, phrases match on word borders,
    a phrase may hold `|` between variants: `"30 days|thirty days"`). Phrases and answers are
    normalised alike: contractions are expanded, number words become digits, `$5` is `5 dollars`,
    `5-7` is `5 to 7`, hyphens are spaces, and a simple plural is its singular.
    - `ask_for`: the sentence asks (a question, or a request such as "please send"). Offers ("how
      can I help", "would you like me to") do not ask.
    - `state_fact`: the sentence states (it is not a question) and does not deny the fact. Where all
      variants of one phrase hold a "not", "no" or "cannot", the fact is a negative one.
    - `acknowledge`: the sentence answers what the user said or felt.
    - `stay_in_scope`: the sentence leads back to what the shop can do.
    - `must_not`: no sentence says this, unless it denies it ("we cannot refund ...").
    `turn` counts assistant turns from 0; None means any turn (for `must_not`: every turn).
    A sentence counts if it is finished, of 2 to 40 words, well formed, and not a repeat of an
    earlier one; it can meet two items at most. A `must_not` is broken by any sentence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: RubricKind
    description: str = Field(min_length=3)
    any_of: tuple[tuple[str, ...], ...] = Field(min_length=1)
    turn: int | None = Field(default=None, ge=0)
    weight: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _phrases_have_words(self) -> Self:
        for alternative in self.any_of:
            if not alternative:
                raise ValueError("an alternative in any_of is empty; give it at least one phrase")
            for phrase in alternative:
                if not all(normalised_words(variant) for variant in phrase.split("|")):
                    raise ValueError(
                        f"phrase {phrase!r} has a variant without a word; write words between the |"
                    )
        return self


class Rubric(BaseModel):
    """All items of one scenario; at least one of them must be something to *do*."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: tuple[RubricItem, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_something_to_do(self) -> Self:
        if all(item.kind == "must_not" for item in self.items):
            raise ValueError(
                "every item is a must_not, so saying nothing would score 1; add an item to do "
                "(ask_for, state_fact, acknowledge, stay_in_scope)"
            )
        return self


def parse_rubric(given: object) -> Rubric | None:
    """A rubric from what a scenario may hold: a `Rubric`, its dict, the bare list of its items, or
    None, which stays None.

    Raises:
        ValueError: it is none of them; one line for each problem, with its place and what was
            found there. The caller says whose rubric it is.
    """
    if given is None or isinstance(given, Rubric):
        return given
    try:
        return Rubric.model_validate(given if isinstance(given, Mapping) else {"items": given})
    except ValidationError as error:
        lines = [
            f"rubric.{'.'.join(map(str, problem['loc']))}: {problem['msg']} "
            f"(found {problem['input']!r})"
            for problem in error.errors()
        ]
        raise ValueError("\n".join(lines)) from error


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """One item, checked.

    `turn` and `sentence` say where it was met, or for a `must_not` where it was broken first; None
    and "" where there is no such place. `met` of a `must_not` is True when nothing broke it.
    """

    item: RubricItem
    met: bool
    turn: int | None = None
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class RubricOutcome:
    """A conversation, checked.

    Attributes:
        score: in [0, 1]; the weight met over the weight of all items to do, times 0.5 to the power
            of the weight of every `must_not` that was broken.
        items: one outcome for each item of the rubric, in its order.
        turn_scores: one for each assistant turn, the share of `score` earned there times 0.5 to the
            power of the weight of what was broken there. Without violations they sum to `score`.
    """

    score: float
    items: tuple[ItemOutcome, ...]
    turn_scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Phrase:
    pattern: re.Pattern[str]
    carries_negation: bool


@dataclass(frozen=True, slots=True)
class _Spoken:
    turn: int
    sentence: Sentence


def check_rubric(rubric: Rubric, assistant_texts: Sequence[str]) -> RubricOutcome:
    """Check the assistant's turns of one conversation, in order, against a rubric.

    Items are shared out among sentences so that the most weight is met (a sentence takes two).
    """
    spoken = [
        _Spoken(turn, sentence)
        for turn, text in enumerate(assistant_texts)
        for sentence in split_sentences(text)
    ]
    places = _share_out(rubric, _countable(spoken))
    outcomes: list[ItemOutcome] = []
    turn_weights = [0.0] * len(assistant_texts)
    turn_factors = [1.0] * len(assistant_texts)
    for index, item in enumerate(rubric.items):
        place = _violation(item, spoken) if item.kind == "must_not" else places.get(index)
        met = (place is None) == (item.kind == "must_not")
        if place is None:
            outcomes.append(ItemOutcome(item, met))
            continue
        outcomes.append(ItemOutcome(item, met, place.turn, place.sentence.text))
        if item.kind == "must_not":
            turn_factors[place.turn] *= VIOLATION_FACTOR**item.weight
        else:
            turn_weights[place.turn] += item.weight
    total = sum(item.weight for item in rubric.items if item.kind != "must_not")
    factor = 1.0
    for turn_factor in turn_factors:
        factor *= turn_factor
    return RubricOutcome(
        score=sum(turn_weights) / total * factor,
        items=tuple(outcomes),
        turn_scores=tuple(
            weight / total * turn_factor
            for weight, turn_factor in zip(turn_weights, turn_factors, strict=True)
        ),
    )


def meets(item: RubricItem, sentence: Sentence) -> bool:
    """True when this sentence does what a positive item asks; its turn is not looked at."""
    if item.kind == "ask_for" and not asks(sentence):
        return False
    if item.kind == "state_fact" and sentence.is_question:
        return False
    for alternative in _compiled(item):
        found = _find_all(alternative, sentence)
        if found and (
            item.kind == "ask_for"  # `asks` has looked for "no need to send"
            or any(phrase.carries_negation for phrase in alternative)
            or not _inverted(item.kind, sentence, found)
        ):
            return True
    return False


def breaks(item: RubricItem, sentence: Sentence) -> bool:
    """True when this sentence says what a `must_not` item forbids, and does not deny it."""
    for alternative in _compiled(item):
        found = _find_all(alternative, sentence)
        if not found:
            continue
        if any(phrase.carries_negation for phrase in alternative):
            return True
        if not any(_denies(sentence, start) for starts in found for start in starts):
            return True
    return False


def _countable(spoken: Sequence[_Spoken]) -> list[_Spoken]:
    """The well-formed sentences that are not said before, nearly word for word."""
    kept: list[_Spoken] = []
    seen: list[frozenset[str]] = []
    for one in spoken:
        if one.sentence.fault:
            continue
        words = frozenset(one.sentence.stems)
        if any(len(words & other) > 0.8 * len(words | other) for other in seen):
            continue
        seen.append(words)
        kept.append(one)
    return kept


def _share_out(rubric: Rubric, spoken: Sequence[_Spoken]) -> dict[int, _Spoken]:
    """Which sentence meets which item: the heaviest matching where a sentence holds two items.

    Items are taken by falling weight and placed along augmenting paths; a set of items that can be
    placed stays placeable (a transversal matroid), so this greedy order gives the most weight.
    """
    wanted = {
        index: [
            position
            for position, one in enumerate(spoken)
            if item.turn in (None, one.turn) and meets(item, one.sentence)
        ]
        for index, item in enumerate(rubric.items)
        if item.kind != "must_not"
    }
    held: dict[int, list[int]] = {position: [] for position in range(len(spoken))}

    def place(index: int, tried: set[int]) -> bool:
        for position in wanted[index]:
            if position in tried:
                continue
            tried.add(position)
            if len(held[position]) < ITEMS_PER_SENTENCE:
                held[position].append(index)
                return True
            for other in held[position]:
                if place(other, tried):
                    held[position].remove(other)
                    held[position].append(index)
                    return True
        return False

    for index in sorted(wanted, key=lambda index: -rubric.items[index].weight):
        place(index, set())
    return {index: spoken[position] for position, items in held.items() for index in items}


def _violation(item: RubricItem, spoken: Sequence[_Spoken]) -> _Spoken | None:
    for one in spoken:
        if item.turn in (None, one.turn) and breaks(item, one.sentence):
            return one
    return None


@lru_cache(maxsize=4096)
def _compiled(item: RubricItem) -> tuple[tuple[_Phrase, ...], ...]:
    return tuple(tuple(_phrase(phrase) for phrase in alternative) for alternative in item.any_of)


def _phrase(phrase: str) -> _Phrase:
    variants = [normalised_words(variant) for variant in phrase.split("|")]
    # longest first: an alternation takes the first that fits
    texts = sorted((" ".join(words) for words in variants), key=len, reverse=True)
    return _Phrase(
        re.compile(rf"(?<= )(?:{'|'.join(re.escape(text) for text in texts)})(?= )"),
        all(NEGATORS.intersection(words) for words in variants),
    )


def _find_all(alternative: Sequence[_Phrase], sentence: Sentence) -> list[list[int]]:
    """Word positions where each phrase of the alternative starts; empty if one is missing."""
    text = sentence.stem_text
    found = []
    for phrase in alternative:
        starts = [text[: match.start()].count(" ") - 1 for match in phrase.pattern.finditer(text)]
        if not starts:
            return []
        found.append(starts)
    return found


def _inverted(kind: RubricKind, sentence: Sentence, found: Sequence[Sequence[int]]) -> bool:
    """True when some phrase stands only in denied places.

    What acknowledges or leads back is denied by a "not" right before it alone: "sorry, we cannot"
    is sorry.
    """
    if kind != "state_fact":
        return any(all(is_denied(sentence, at, reach=2) for at in starts) for starts in found)
    return any(all(_denied_as_fact(sentence, start) for start in starts) for starts in found)


def _denied_as_fact(sentence: Sentence, start: int) -> bool:
    if _followed_in_clause(sentence, start, _DENIED_AFTERWARDS):
        return True
    if not is_denied(sentence, start):
        return False
    negator = max(position for position in sentence.negator_positions if position < start)
    clause = sentence.clause_ids[negator]
    own_clause = {
        word for word, at in zip(sentence.words, sentence.clause_ids, strict=True) if at == clause
    }
    return not (_LIMITS.intersection(sentence.words[negator:]) or _CONDITIONS & own_clause)


def _denies(sentence: Sentence, start: int) -> bool:
    return is_denied(sentence, start, reach=12) or _followed_in_clause(
        sentence, start, _DENIED_OUTRIGHT
    )


def _followed_in_clause(sentence: Sentence, start: int, pattern: re.Pattern[str]) -> bool:
    clause = sentence.clause_ids[start]
    rest = [
        word
        for word, clause_id in zip(sentence.words[start:], sentence.clause_ids[start:], strict=True)
        if clause_id == clause
    ]
    return bool(pattern.search(f" {' '.join(rest)} "))
