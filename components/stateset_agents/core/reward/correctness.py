"""Is what the answers say true, as far as the truth is given?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stateset_agents.core.facts import (
    Statement,
    names_in,
    root_of,
    statements_of,
    states,
    takes_back,
    verdict,
)
from stateset_agents.core.reward.base import RewardFunction, RewardResult
from stateset_agents.core.reward.conversation import Answer, answers_of, policy_text
from stateset_agents.core.sentences import Sentence, content_words
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.core.wordlists import FUNCTION_WORDS
from stateset_agents.exceptions import ConfigurationError, RewardError

_CONTRADICTION_FACTOR, _INVENTED_NUMBER_FACTOR, _INVENTED_NAME_FACTOR = 0.3, 0.6, 0.8
_NOTHING_TO_CHECK = 0.5
_LONG_NUMBER = 4  # digits: such a number names something, and is not made up in passing
_BARE_WORDS = 6  # "Within 5 days." is an answer; more words than these without grammar are a list

# What data sets call it; the first is ours.
_TRUTH_KEYS = ("truth", "ground_truth", "reference", "expected", "facts")

Truth = str | Sequence[str] | Mapping[str, object]


class CorrectnessReward(RewardFunction):
    """Facts and numbers of the answers, held to what is given as true.

        score = recall * consistency                with a truth
        score = support * consistency               without

    - *Truth*, what must be said: the constructor's `truth`, else `context["truth"]`, else the
      scenario's `truth`, at its top or in its `metadata`; it may also be called `ground_truth`,
      `reference`, `expected` or `facts`, as data sets do. A text, a list of texts, or a mapping
      from what is asked to its value (`{"delivery time": "3 to 5 working days"}`).
    - *Knowledge*, what may be said: the policy (system messages, else the scenario's `context`),
      messages of the role `tool`, the truth, and the numbers and names that the user has said.
    - `recall`: the share of the truth's facts that one sentence of an answer states, with all of a
      fact's numbers and names and half of its other words (what the user just said counts).
    - `support`: the share of the answers' statements that the knowledge bears out, one that it says
      nothing of counting half; 0.5 where there is nothing to check. What cannot be checked is
      neither right nor wrong.
    - `consistency`: 0.3 for each statement that contradicts (another number for the same thing, a
      "not" more or less, a word's opposite), 0.6 for each number and 0.8 for each name that nobody
      has given, the worst turn's product.
    Questions claim nothing. What is doubted ("some say", "used to be"), or is of another measure
    ("5 weeks" for 5 days), states no fact, and "that is wrong" contradicts what stands before it.
    Fooled by: a paraphrase in other words (it is missed), a wrong claim that shares no word with
    the truth, numbers that change places within a sentence, true statements about something else.
    `turn_scores` are recall (or support) earned in the turn, times its consistency; of recall
    times the number of turns, so that their mean is what the conversation earned.

    Args:
        truth: for every conversation; None: from the context or the scenario.
        weight: its share in a composite.
        name: its key in a composite's breakdown.

    Raises:
        ConfigurationError: a `truth` that is none of the three forms.
    """

    def __init__(
        self, weight: float = 1.0, name: str | None = None, *, truth: Truth | None = None
    ) -> None:
        super().__init__(weight=weight, name=name)
        try:
            _facts(truth)
        except ValueError as error:
            raise ConfigurationError(f"reward {self.name!r}: {error}") from error
        self.truth = truth

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 0.

        Raises:
            RewardError: the truth in context or scenario is none of the three forms.
        """
        answers = answers_of(turns, context)
        facts = self._truth(context)
        told = [turn.content for turn in turns if turn.role == "tool"]
        given = [
            one for text in [policy_text(turns, context), *told] for one in statements_of(text)
        ]
        known = [*facts, *given]
        found: set[int] = set()
        user: list[str] = []
        readings = []
        for answer in answers:
            user.append(answer.user_text)
            readings.append(_read(answer, facts, known, user, found, bool(given)))
        if not readings:
            return RewardResult(score=0.0, turn_scores=[])
        consistency = min(reading.consistency for reading in readings)
        if facts:
            earned = [len(readings) * len(reading.facts) / len(facts) for reading in readings]
        else:
            earned = [reading.support for reading in readings]
        content = sum(earned) / len(earned)
        return RewardResult(
            score=content * consistency,
            breakdown={
                "recall" if facts else "support": content,
                "consistency": consistency,
                "contradictions": float(sum(reading.contradictions for reading in readings)),
                "invented": float(sum(reading.invented for reading in readings)),
            },
            metadata={
                "missed": [
                    fact.sentence.text for index, fact in enumerate(facts) if index not in found
                ]
            },
            turn_scores=[
                share * reading.consistency for share, reading in zip(earned, readings, strict=True)
            ],
        )

    def _truth(self, context: dict[str, Any] | None) -> list[Statement]:
        context = context or {}
        scenario = context.get("scenario") or {}
        metadata = scenario.get("metadata") or {}
        places = (context, scenario, metadata)
        for given in (self.truth, *(place.get(key) for place in places for key in _TRUTH_KEYS)):
            if given is not None:
                try:
                    return _facts(given)
                except ValueError as error:
                    raise RewardError(
                        f"reward {self.name!r}, scenario {scenario.get('id', '?')!r}: {error}"
                    ) from error
        return []


@dataclass(frozen=True, slots=True)
class _Reading:
    """One answer, checked: which facts it states for the first time, and what is wrong with it."""

    facts: tuple[int, ...]
    support: float
    consistency: float
    contradictions: int
    invented: int


def _facts(truth: object) -> list[Statement]:
    """The truth as statements.

    Raises:
        ValueError: it is none of the three forms, or empty.
    """
    if truth is None:
        return []
    if isinstance(truth, Mapping):
        lines = [f"{str(key).replace('_', ' ')}: {value}" for key, value in truth.items()]
        facts = [
            _entry(line, str(value)) for line, value in zip(lines, truth.values(), strict=True)
        ]
    elif isinstance(truth, str):
        facts = statements_of(truth)
    elif isinstance(truth, Sequence) and all(isinstance(line, str) for line in truth):
        facts = [one for line in truth for one in statements_of(line)]
    else:
        facts = []
    if not facts:
        raise ValueError(
            f"truth is {truth!r}; give a text, a list of texts, or a mapping from what is asked to "
            "its value"
        )
    return facts


def _entry(line: str, value: str) -> Statement:
    """A mapping's entry; every word of its value must come back, as a name must."""
    sentence = statements_of(line.rstrip(".!?"))[0].sentence
    plain = [root_of(word) for word in content_words(value) if not word[0].isdigit()]
    return Statement(sentence, frozenset(plain) if len(plain) <= 3 else names_in(f"is {value}"))


def _read(
    answer: Answer,
    facts: Sequence[Statement],
    known: Sequence[Statement],
    user: Sequence[str],
    found: set[int],
    has_knowledge: bool,
) -> _Reading:
    said = frozenset(root_of(word) for word in content_words(answer.user_text))
    heard = statements_of(" . ".join(user).replace("?", "."))
    claims = [one for one in statements_of(answer.text) if _counts(one.sentence)]
    new = [
        index
        for index, fact in enumerate(facts)
        if index not in found and any(states(claim, fact, said) for claim in claims)
    ]
    found.update(new)
    verdicts = [verdict(claim, known, heard) for claim in claims if claim.roots or claim.quantities]
    contradictions = verdicts.count("contradicts") + sum(takes_back(claim) for claim in claims)
    numbers, names = _invented(claims, [*known, *heard], bool(known))
    consistency = _CONTRADICTION_FACTOR**contradictions
    consistency *= _INVENTED_NUMBER_FACTOR**numbers * _INVENTED_NAME_FACTOR**names
    borne_out = verdicts.count("agrees") + _NOTHING_TO_CHECK * verdicts.count("unknown")
    support = borne_out / len(verdicts) if verdicts else _NOTHING_TO_CHECK
    return _Reading(
        facts=tuple(new),
        support=support if has_knowledge else _NOTHING_TO_CHECK,
        consistency=consistency,
        contradictions=contradictions,
        invented=numbers + names,
    )


def _counts(sentence: Sentence) -> bool:
    """True for prose and for a bare short answer ("Canberra."), not for a string of keywords."""
    if sentence.reads_as_prose:
        return True
    function_words = sum(word in FUNCTION_WORDS for word in sentence.words)
    return len(sentence.words) <= 2 or (
        len(sentence.words) <= _BARE_WORDS and function_words > 0 and sentence.commas == 0
    )


def _invented(
    claims: Sequence[Statement], known: Sequence[Statement], has_truth: bool
) -> tuple[int, int]:
    """How many numbers and names nobody has given. Where nothing but the user's words is known,
    only long numbers beside the user's own: "order 12354" of one who said 12345.
    """
    values = {quantity.value for one in known for quantity in one.quantities}
    numbers = {q.value for one in claims for q in one.quantities} - values - {"1"}
    if not has_truth:
        long = any(len(value) >= _LONG_NUMBER for value in values)
        return sum(long and len(number) >= _LONG_NUMBER for number in numbers), 0
    roots: frozenset[str] = frozenset().union(*(one.roots | one.names for one in known))
    return len(numbers), len({name for one in claims for name in one.names} - roots)
