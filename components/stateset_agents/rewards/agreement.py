"""Does a reward agree with people? Its scores against turns that were rated good or bad.

Owns the reading of rated turns and the figure. It does not know which agreement is enough.
"""

from __future__ import annotations

import gzip
import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stateset_agents.core.reward import RewardFunction, RewardResult
from stateset_agents.core.sentences import normalised_words
from stateset_agents.core.trajectory import ConversationTurn, to_turn
from stateset_agents.exceptions import DataError


@dataclass(frozen=True, slots=True)
class RatedTurn:
    """A conversation whose last turn is the assistant's, and whether people called that good."""

    conversation_id: str
    turns: tuple[ConversationTurn, ...]
    good: bool


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a reward ranks rated turns.

    Attributes:
        auc: the chance that a good turn scores above a bad one, a tie counting half; 0.5 is none.
        low: of its 95 percent interval; turns of one conversation are not independent, and count
            as one cluster (Obuchowski 1997; DeLong et al. 1988 where each has one rated turn).
        high: likewise.
        num_good: how many were called good.
        num_bad: how many were called bad.
        mean_good: mean score of the good.
        mean_bad: mean score of the bad.
    """

    auc: float
    low: float
    high: float
    num_good: int
    num_bad: int
    mean_good: float
    mean_bad: float


def read_rated_turns(path: Path | str) -> list[RatedTurn]:
    """Read JSON lines with `prompt`, `completion` (messages) and `label`, gzipped or not.

    Turns that call a tool (their content is a JSON object) say nothing to a person: such rows are
    left out, and within a prompt such messages are; the tools' answers stay.

    Raises:
        DataError: the file cannot be read, or every row that is not of this form.
    """
    path = Path(path)
    try:
        given = path.read_bytes()
        text = (gzip.decompress(given) if path.suffix == ".gz" else given).decode()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    rated: list[RatedTurn] = []
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            turn = _rated_turn(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            problems.append(f"{path}, line {number}: {type(error).__name__}: {error}")
            continue
        if turn is not None:
            rated.append(turn)
    if problems:
        raise DataError(problems)
    return rated


async def agreement(reward: RewardFunction, rated: Sequence[RatedTurn]) -> Agreement:
    """Score each rated turn in its conversation and compare with the ratings. A reward that tells
    turns apart is asked for that turn alone, another one for the conversation up to it.

    Raises:
        DataError: the ratings are all good or all bad.
    """
    results = await reward.compute_rewards([(one.turns, {}) for one in rated])
    return agreement_of(
        [_last(result) for result in results],
        [one.good for one in rated],
        [one.conversation_id for one in rated],
    )


def length_agreement(rated: Sequence[RatedTurn]) -> Agreement:
    """The baseline: the number of words as a score."""
    lengths = [float(len(normalised_words(one.turns[-1].content))) for one in rated]
    return agreement_of(
        lengths, [one.good for one in rated], [one.conversation_id for one in rated]
    )


def agreement_of(
    scores: Sequence[float], good: Sequence[bool], conversations: Sequence[str] = ()
) -> Agreement:
    """The figures of scores and ratings, in the same order.

    Args:
        scores: one of each rated turn.
        good: its rating.
        conversations: the id of the conversation that it is of, "" where none is known. Empty: each
            is of a conversation of its own.

    Raises:
        DataError: the ratings are all good or all bad.
    """
    ups = [score for score, is_good in zip(scores, good, strict=True) if is_good]
    downs = [score for score, is_good in zip(scores, good, strict=True) if not is_good]
    if not ups or not downs:
        raise DataError(f"{len(ups)} turns are rated good and {len(downs)} bad; both are needed")
    ids = [one or f"turn {n}" for n, one in enumerate(conversations or [""] * len(scores))]
    above, below = _placements(ups, downs)
    auc = sum(above) / len(above)
    half = 1.96 * _standard_error(auc, above, below, good, ids)
    return Agreement(
        auc=auc,
        low=max(0.0, auc - half),
        high=min(1.0, auc + half),
        num_good=len(ups),
        num_bad=len(downs),
        mean_good=sum(ups) / len(ups),
        mean_bad=sum(downs) / len(downs),
    )


def _placements(ups: Sequence[float], downs: Sequence[float]) -> tuple[list[float], list[float]]:
    """For each good score the share of bad ones below it, for each bad one the share of good ones
    above it; a tie counts half. The mean of either is the AUC (Mann and Whitney 1947).
    """
    low, high = sorted(downs), sorted(ups)
    above = [(bisect_left(low, one) + bisect_right(low, one)) / (2 * len(low)) for one in ups]
    below = [
        1 - (bisect_left(high, one) + bisect_right(high, one)) / (2 * len(high)) for one in downs
    ]
    return above, below


def _standard_error(
    auc: float,
    above: Sequence[float],
    below: Sequence[float],
    good: Sequence[bool],
    conversations: Sequence[str],
) -> float:
    """Of the AUC over clusters (Obuchowski 1997, equations 4 to 6): each conversation gives the sum
    of its placements' distances from the AUC, of its good turns and of its bad ones.
    """
    ups: dict[str, float] = {}
    downs: dict[str, float] = {}
    of_good, of_bad = iter(above), iter(below)
    for conversation, is_good in zip(conversations, good, strict=True):
        sums, placement = (ups, next(of_good)) if is_good else (downs, next(of_bad))
        sums[conversation] = sums.get(conversation, 0.0) + placement - auc
    num_clusters = len({*ups, *downs})
    variance = _spread(ups) / len(above) ** 2 + _spread(downs) / len(below) ** 2
    if num_clusters > 1:
        shared = sum(ups[name] * downs[name] for name in ups.keys() & downs.keys())
        shared *= num_clusters / (num_clusters - 1)
        variance += 2 * shared / (len(above) * len(below))
    return math.sqrt(max(0.0, variance))


def _spread(sums: Mapping[str, float]) -> float:
    """The sum of squares over clusters, by its unbiased factor; of one cluster nothing is known."""
    count = len(sums)
    return sum(one**2 for one in sums.values()) * count / (count - 1) if count > 1 else math.inf


def _last(result: RewardResult) -> float:
    return result.turn_scores[-1] if result.turn_scores else result.score


def _rated_turn(row: dict[str, Any]) -> RatedTurn | None:
    (last,) = row["completion"]
    if not isinstance(row["label"], bool):
        raise ValueError(f"label is {row['label']!r}; allowed: true, false")
    if _is_call(last["content"]):
        return None
    turns = [to_turn(message, role="user") for message in (*row["prompt"], last)]
    return RatedTurn(
        conversation_id=str(row.get("conversation_id", "")),
        turns=tuple(t for t in turns if t.role != "assistant" or not _is_call(t.content)),
        good=row["label"],
    )


def _is_call(content: str) -> bool:
    if not content.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(content), dict)
    except ValueError:
        return False
