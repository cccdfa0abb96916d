"""Does the assistant repeat itself, or copy what others said?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from stateset_agents.core.reward.base import RewardFunction, RewardResult
from stateset_agents.core.reward.conversation import Answer, answers_of, policy_text
from stateset_agents.core.sentences import is_content_word, ngrams, normalised_words
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.exceptions import ConfigurationError

_COPY_WORDS = 6  # copies of others are runs of six words: shorter ones are how English is
_OWN_WORDS = 4


class RepetitionReward(RewardFunction):
    """1 where nothing is repeated, towards 0 the more is.

    Per assistant turn, the product of four factors, each 1 up to a tolerance:
    - `within`: word triples that occur before in the same answer (0 at two fifths of them);
    - `stutter`: a word or pair of words said twice in a row, or one content word in more than a
      tenth of the answer and more than three times; 0.5 for each;
    - `across`: runs of four words that stood in an earlier answer of the same conversation;
    - `copied`: runs of six words that the user or the system message said.
    The last two fall linearly from 1 at their tolerance to 0 where all runs are copies. The
    conversation's score is the mean of its turns' mean and its worst turn: three good answers do
    not pay for a broken one.
    Meant as a gate of a `CompositeReward`. Fooled by: saying the same in other words, and by
    repeating over many conversations one answer that fits all (see distinctness in evaluation).

    Args:
        own_tolerance: the share of an answer that may come from earlier answers, in [0, 1).
        copy_tolerance: the share that may be the user's or the system's words, in [0, 1).
        weight: its share, or its strength as a gate.
        name: its key in a composite's breakdown.

    Raises:
        ConfigurationError: a tolerance outside [0, 1).
    """

    def __init__(
        self,
        weight: float = 1.0,
        name: str | None = None,
        *,
        own_tolerance: float = 0.15,
        copy_tolerance: float = 0.5,
    ) -> None:
        super().__init__(weight=weight, name=name)
        for field, value in (("own_tolerance", own_tolerance), ("copy_tolerance", copy_tolerance)):
            if not 0 <= value < 1:
                raise ConfigurationError(
                    f"reward {self.name!r}: {field} is {value}; give a share in [0, 1)"
                )
        self.own_tolerance = own_tolerance
        self.copy_tolerance = copy_tolerance

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 1."""
        answers = answers_of(turns, context)
        others = set(ngrams(normalised_words(policy_text(turns, context)), _COPY_WORDS))
        parts = []
        for answer in answers:
            others.update(ngrams(normalised_words(answer.user_text), _COPY_WORDS))
            parts.append(self._factors(answer, others))
        if not parts:
            return RewardResult(score=1.0, turn_scores=[])
        scores = []
        for part in parts:
            score = 1.0
            for factor in part.values():
                score *= factor
            scores.append(score)
        mean = sum(scores) / len(scores)
        return RewardResult(
            score=(mean + min(scores)) / 2,
            breakdown={name: sum(part[name] for part in parts) / len(parts) for name in parts[0]},
            turn_scores=scores,
        )

    def _factors(self, answer: Answer, others: set[tuple[str, ...]]) -> dict[str, float]:
        words = normalised_words(answer.text)
        earlier: set[tuple[str, ...]] = set()
        for text in answer.earlier:
            earlier.update(ngrams(normalised_words(text), _OWN_WORDS))
        return {
            "within": _within(words),
            "stutter": 0.5 ** _stutters(words),
            "across": _falls(_share(words, _OWN_WORDS, earlier), self.own_tolerance),
            "copied": _falls(_share(words, _COPY_WORDS, others), self.copy_tolerance),
        }


def _within(words: tuple[str, ...]) -> float:
    triples = ngrams(words, 3)
    if not triples:
        return 1.0
    again = 1 - len(set(triples)) / len(triples)
    return max(0.0, 1 - max(0.0, again - 0.05) / 0.35)


def _stutters(words: tuple[str, ...]) -> int:
    """How many words or pairs of words are said twice in a row, or far too often."""
    doubled = sum(
        first == second and first not in {"that", "had"} for first, second in pairwise(words)
    )
    doubled += sum(
        words[i : i + 2] == words[i + 2 : i + 4] and words[i] != words[i + 1]
        for i in range(len(words) - 3)
    )
    counts = Counter(word for word in words if is_content_word(word) or word == "please")
    return doubled + sum(count > 3 and count > 0.1 * len(words) for count in counts.values())


def _share(words: tuple[str, ...], n: int, known: set[tuple[str, ...]]) -> float:
    """The share of words that stand in a run of n words that is known."""
    if not words or not known:
        return 0.0
    copied = [False] * len(words)
    for start, gram in enumerate(ngrams(words, n)):
        if gram in known:
            copied[start : start + n] = [True] * n
    return sum(copied) / len(words)


def _falls(share: float, tolerance: float) -> float:
    return min(1.0, (1 - share) / (1 - tolerance))
