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

    Per assistant turn, the product of
    - `within`: word triples that occur before in the same answer (0 at two fifths of them);
    - `stutter`: a word or pair of words said twice in a row, or one content word in more than a
      tenth of the answer and more than three times; 0.5 for each;
    - `own`: the share of words in runs of four that stood in an earlier answer of the conversation,
      1 up to `own_tolerance`, falling to 0 where all of it did;
    - `echo`: the same of runs of six words that the user said, with `echo_tolerance`;
    - `recited`: words in runs of six from the system message, 1 up to `quoted_words` of them in one
      answer, falling to 0 at three times as many. A count, not a share: a fact of the policy has
      few wordings, and a short answer may be nothing else.
    The conversation's score is the mean of its turns' mean and its worst turn: three good answers
    do not pay for a broken one.
    Meant as a gate of a `CompositeReward`. Fooled by: saying the same in other words, and by
    repeating over many conversations one answer that fits all (see distinctness in evaluation).

    Args:
        own_tolerance: the share of an answer that may come from earlier answers, in [0, 1).
        echo_tolerance: the share that may be the user's words, in [0, 1).
        quoted_words: how many words of the policy one answer may quote, 1 or more.
        weight: its share, or its strength as a gate.
        name: its key in a composite's breakdown.

    Raises:
        ConfigurationError: a tolerance outside [0, 1), or no quoted words.
    """

    def __init__(
        self,
        weight: float = 1.0,
        name: str | None = None,
        *,
        own_tolerance: float = 0.35,
        echo_tolerance: float = 0.35,
        quoted_words: int = 25,
    ) -> None:
        super().__init__(weight=weight, name=name)
        problems = [
            f"reward {self.name!r}: {field} is {value}; give a share in [0, 1)"
            for field, value in (
                ("own_tolerance", own_tolerance),
                ("echo_tolerance", echo_tolerance),
            )
            if not 0 <= value < 1
        ]
        if quoted_words < 1:
            problems.append(f"reward {self.name!r}: quoted_words is {quoted_words}; give 1 or more")
        if problems:
            raise ConfigurationError(problems)
        self.own_tolerance = own_tolerance
        self.echo_tolerance = echo_tolerance
        self.quoted_words = quoted_words

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 1."""
        answers = answers_of(turns, context)
        policy = set(ngrams(normalised_words(policy_text(turns, context)), _COPY_WORDS))
        user: set[tuple[str, ...]] = set()
        parts = []
        for answer in answers:
            user.update(ngrams(normalised_words(answer.user_text), _COPY_WORDS))
            parts.append(self._factors(answer, user, policy))
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

    def _factors(
        self, answer: Answer, user: set[tuple[str, ...]], policy: set[tuple[str, ...]]
    ) -> dict[str, float]:
        words = normalised_words(answer.text)
        earlier: set[tuple[str, ...]] = set()
        for text in answer.earlier:
            earlier.update(ngrams(normalised_words(text), _OWN_WORDS))
        count = len(words) or 1
        quoted = _in_known_runs(words, _COPY_WORDS, policy)
        return {
            "within": _within(words),
            "stutter": 0.5 ** _stutters(words),
            "own": _falls(_in_known_runs(words, _OWN_WORDS, earlier) / count, self.own_tolerance),
            "echo": _falls(_in_known_runs(words, _COPY_WORDS, user) / count, self.echo_tolerance),
            "recited": min(1.0, max(0.0, 1.5 - quoted / (2 * self.quoted_words))),
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


def _in_known_runs(words: tuple[str, ...], n: int, known: set[tuple[str, ...]]) -> int:
    """How many of the words stand in a run of n words that is known."""
    covered = [False] * len(words)
    for start, gram in enumerate(ngrams(words, n)):
        if gram in known:
            covered[start : start + n] = [True] * n
    return sum(covered)


def _falls(share: float, tolerance: float) -> float:
    return min(1.0, (1 - share) / (1 - tolerance))
