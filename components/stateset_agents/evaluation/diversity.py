"""Does the policy still say different things to different people?

Reinforcement learning finds the sentence that scores well anywhere and says it everywhere. The
reward of a single conversation cannot see that; these measures look across conversations. They do
not know rewards nor tokens: words are lower-cased runs of letters, digits and apostrophes.

- distinct-n (Li et al., "A diversity-promoting objective function", 2016): different n-grams
  divided by all n-grams. It falls with the amount of text, so a policy that answers shorter would
  look more varied; here it is averaged over blocks of equal size.
- identical answers: share of answers that occur, word for word, in another scenario.
- self-overlap: share of an answer's 4-grams that occur in answers to *other* scenarios (as in
  Self-BLEU of Zhu et al., 2018, without its brevity terms).
- repeated phrases: share of a conversation's 4-grams that it had already said in an earlier answer.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest

from stateset_agents.evaluation.results import PolicyResult

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_OVERLAP_ORDER = 4

Ngram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diversity:
    """Shares in [0, 1]. For the first two more is more varied, for the others less is."""

    distinct_1: float
    distinct_2: float
    identical_answers: float
    self_overlap: float
    repeated_phrases: float

    def as_dict(self) -> dict[str, float]:
        """By name, in the order of the fields."""
        return asdict(self)


def words(text: str) -> list[str]:
    """Lower-cased words; punctuation is left out."""
    return _WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], order: int) -> list[Ngram]:
    """All n-grams in order, repeated ones too; none where the text is shorter."""
    return [tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)]


def diversity(result: PolicyResult, *, block: int = 1_000) -> Diversity:
    """Measure a policy's answers.

    Args:
        result: failed conversations are left out.
        block: n-grams in one block of distinct-n; a policy that said less is one block.
    """
    conversations = [(one.key[0], [words(text) for text in one.answers]) for one in result.scored]
    # Neighbours come from different scenarios, so that a block sees what is said everywhere.
    by_turn = zip_longest(*(answers for _, answers in conversations))
    mixed = [answer for answer in chain.from_iterable(by_turn) if answer]
    return Diversity(
        distinct_1=distinct(mixed, 1, block),
        distinct_2=distinct(mixed, 2, block),
        identical_answers=identical_answers(conversations),
        self_overlap=self_overlap(conversations),
        repeated_phrases=repeated_phrases([answers for _, answers in conversations]),
    )


def distinct(answers: Sequence[Sequence[str]], order: int, block: int) -> float:
    """Mean over full blocks of `block` n-grams of (different n-grams / n-grams).

    N-grams do not cross answers. A last block that is not full is left out unless it is the only
    one. No n-gram at all gives 0: a policy that says nothing is not varied.
    """
    grams = [gram for answer in answers for gram in ngrams(answer, order)]
    if not grams:
        return 0.0
    full = [grams[i : i + block] for i in range(0, len(grams) - block + 1, block)] or [grams]
    return sum(len(set(one)) / len(one) for one in full) / len(full)


Conversations = Sequence[tuple[str, Sequence[Sequence[str]]]]


def identical_answers(conversations: Conversations) -> float:
    """Share of answers whose words also are an answer in another scenario. `conversations` are
    (scenario id, answers as words). The same answer with another seed is not counted.
    """
    said_in: dict[Ngram, set[str]] = defaultdict(set)
    said = [(scenario, tuple(answer)) for scenario, answers in conversations for answer in answers]
    for scenario, answer in said:
        said_in[answer].add(scenario)
    return sum(len(said_in[answer]) > 1 for _, answer in said) / len(said) if said else 0.0


def self_overlap(conversations: Conversations) -> float:
    """Share of 4-grams that also occur in an answer to another scenario."""
    said_in: dict[Ngram, set[str]] = defaultdict(set)
    grams = [
        (scenario, gram)
        for scenario, answers in conversations
        for answer in answers
        for gram in ngrams(answer, _OVERLAP_ORDER)
    ]
    for scenario, gram in grams:
        said_in[gram].add(scenario)
    return sum(len(said_in[gram]) > 1 for _, gram in grams) / len(grams) if grams else 0.0


def repeated_phrases(conversations: Sequence[Sequence[Sequence[str]]]) -> float:
    """Share of 4-grams that an earlier answer of the same conversation already had."""
    repeated = total = 0
    for answers in conversations:
        before: set[Ngram] = set()
        for answer in answers:
            grams = ngrams(answer, _OVERLAP_ORDER)
            repeated += sum(gram in before for gram in grams)
            total += len(grams)
            before.update(grams)
    return repeated / total if total else 0.0
