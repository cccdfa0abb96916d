"""Is an answer unlike what was said before, and unlike what the group says?

Owns how alike two answers are. It sees a group where the rollout tells of one (`context["group"]`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from stateset_agents.core.reward import RewardFunction, RewardResult
from stateset_agents.core.reward.conversation import Answer, answers_of
from stateset_agents.core.sentences import is_content_word, ngrams, normalised_words
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.exceptions import ConfigurationError

_CONTENT_WEIGHT = 3.0  # of a content word beside a function word
_STUTTER_FACTOR = 0.6
_WITHIN_TOLERANCE = 0.1
# What is slipped in does not make a sentence another one.
_FILLERS = frozenset(
    ("well", "now", "soon", "really", "simply", "quickly", "shortly", "actually", "certainly",
     "surely", "indeed", "once", "again", "also", "still", "just", "then", "so")
)  # fmt: skip


class SimilarityAwareReward(RewardFunction):
    """1 where every answer says something of its own, towards 0 the more it is like others.

    Per assistant turn, the product of
    - `within`: sentences of the answer (a semicolon ends one, too) that are like an earlier one of
      the same answer, word triples that come again, words said over and over;
    - `across`: the greatest likeness to an earlier answer of the conversation, 1 up to
      `turn_tolerance`, falling to 0 at 1 (a copy);
    - `group`: the mean likeness to the answers that the group's other conversations give at the
      same turn, 1 up to `group_tolerance`, falling to `1 - group_strength` at 1 (all copies).
    Likeness, in [0, 1], of words without fillers ("well", "now") is the larger of the cosine of
    word counts (content words count threefold) and the share of the shorter answer's word triples
    that the other one has. Without a group in the context `group` is 1. The score is the mean of
    the turns' mean and the worst turn.

    An empty answer is like nothing and says nothing: it has 0. Fooled by: the same in other words,
    by nonsense (nothing is less like the others), and by drawing lots: distinct is not good, so
    keep its weight small or use it as a gate.

    Args:
        weight: its share in a composite, or its strength as a gate.
        name: its key in a composite's breakdown.
        turn_tolerance: likeness to an earlier answer that is free, in [0, 1).
        group_tolerance: mean likeness to the group that is free, in [0, 1). Short true answers to
            one question are alike; lower it where they need not be.
        group_strength: what copies within a group cost at most, in [0, 1]; 0 leaves the group out.

    Raises:
        ConfigurationError: a tolerance outside [0, 1) or a strength outside [0, 1].
    """

    def __init__(
        self,
        weight: float = 1.0,
        name: str | None = None,
        *,
        turn_tolerance: float = 0.5,
        group_tolerance: float = 0.6,
        group_strength: float = 0.5,
    ) -> None:
        super().__init__(weight=weight, name=name)
        problems = [
            f"reward {self.name!r}: {field} is {value}; give a number in [0, 1)"
            for field, value in (
                ("turn_tolerance", turn_tolerance),
                ("group_tolerance", group_tolerance),
            )
            if not 0 <= value < 1
        ]
        if not 0 <= group_strength <= 1:
            problems.append(
                f"reward {self.name!r}: group_strength is {group_strength}; give a number in [0, 1]"
            )
        if problems:
            raise ConfigurationError(problems)
        self.turn_tolerance = turn_tolerance
        self.group_tolerance = group_tolerance
        self.group_strength = group_strength

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 0."""
        siblings = [
            [turn.content for turn in other if turn.role == "assistant"]
            for other in (context or {}).get("group") or ()
        ]
        parts = []
        for place, answer in enumerate(answers_of(turns, context)):
            same_turn = [texts[place] for texts in siblings if place < len(texts)]
            parts.append(self._factors(answer, same_turn))
        if not parts:
            return RewardResult(score=0.0, turn_scores=[])
        scores = [math.prod(part.values()) for part in parts]
        return RewardResult(
            score=(sum(scores) / len(scores) + min(scores)) / 2,
            breakdown={name: sum(part[name] for part in parts) / len(parts) for name in parts[0]},
            turn_scores=scores,
        )

    def _factors(self, answer: Answer, same_turn: Sequence[str]) -> dict[str, float]:
        words = normalised_words(answer.text)
        if not words:
            return {"within": 0.0, "across": 1.0, "group": 1.0}
        earlier = max((likeness(answer.text, text) for text in answer.earlier), default=0.0)
        group = sum(likeness(answer.text, text) for text in same_turn) / (len(same_turn) or 1)
        return {
            "within": _within(answer, words),
            "across": _falls(earlier, self.turn_tolerance),
            "group": 1 - self.group_strength * (1 - _falls(group, self.group_tolerance)),
        }


def likeness(first: str, second: str) -> float:
    """How alike two texts are, in [0, 1]: 1 for a copy or a text that holds the other one."""
    one, two = _told(first), _told(second)
    if not one or not two:
        return float(one == two)
    if one == two:
        return 1.0
    shorter, longer = sorted((ngrams(one, 3), ngrams(two, 3)), key=len)
    known = set(longer)
    copied = sum(gram in known for gram in shorter) / len(shorter) if shorter else 0.0
    return max(_cosine(_weighted(one), _weighted(two)), copied)


def _told(text: str) -> tuple[str, ...]:
    """The words of a text but for fillers; all of them where there is nothing else."""
    words = normalised_words(text)
    return tuple(word for word in words if word not in _FILLERS) or words


def _weighted(words: tuple[str, ...]) -> dict[str, float]:
    return {
        word: count * (_CONTENT_WEIGHT if is_content_word(word) else 1.0)
        for word, count in Counter(words).items()
    }


def _cosine(one: dict[str, float], two: dict[str, float]) -> float:
    shared = sum(value * two[word] for word, value in one.items() if word in two)
    lengths = math.hypot(*one.values()) * math.hypot(*two.values())
    return min(1.0, shared / lengths)


def _within(answer: Answer, words: tuple[str, ...]) -> float:
    """1 less twice the share of words that repeat, times 0.6 for each word that is said far too
    often or twice in a row.
    """
    again = 0
    before: list[str] = []
    for part in (part for sentence in answer.sentences for part in sentence.text.split(";")):
        length = len(normalised_words(part))
        if length > 2 and any(likeness(part, b) > 0.8 for b in before):
            again += length
        before.append(part)
    triples = ngrams(words, 3)
    doubled = 1 - len(set(triples)) / len(triples) if triples else 0.0
    share = max(again / len(words), doubled)
    counts = Counter(word for word in words if is_content_word(word) or word == "please")
    stutters = sum(count > 3 and count > 0.1 * len(words) for count in counts.values())
    stutters += sum(
        first == second and first not in {"that", "had"} for first, second in pairwise(words)
    )
    return max(0.0, 1 - 2 * max(0.0, share - _WITHIN_TOLERANCE)) * _STUTTER_FACTOR**stutters


def _falls(likeness: float, tolerance: float) -> float:
    return min(1.0, (1 - likeness) / (1 - tolerance))
