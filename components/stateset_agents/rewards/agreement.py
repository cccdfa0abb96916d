"""Does a reward agree with people? Its scores against turns that were rated good or bad.

Owns the reading of rated turns and the figure. It does not know which agreement is enough.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
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
        low: of its 95 percent interval (Hanley and McNeil 1982).
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
    return agreement_of([_last(result) for result in results], [one.good for one in rated])


def length_agreement(rated: Sequence[RatedTurn]) -> Agreement:
    """The baseline: the number of words as a score."""
    lengths = [float(len(normalised_words(one.turns[-1].content))) for one in rated]
    return agreement_of(lengths, [one.good for one in rated])


def agreement_of(scores: Sequence[float], good: Sequence[bool]) -> Agreement:
    """The figures of scores and ratings, in the same order.

    Raises:
        DataError: the ratings are all good or all bad.
    """
    ups = [score for score, is_good in zip(scores, good, strict=True) if is_good]
    downs = [score for score, is_good in zip(scores, good, strict=True) if not is_good]
    if not ups or not downs:
        raise DataError(f"{len(ups)} turns are rated good and {len(downs)} bad; both are needed")
    auc = _auc(ups, downs)
    half = 1.96 * _standard_error(auc, len(ups), len(downs))
    return Agreement(
        auc=auc,
        low=max(0.0, auc - half),
        high=min(1.0, auc + half),
        num_good=len(ups),
        num_bad=len(downs),
        mean_good=sum(ups) / len(ups),
        mean_bad=sum(downs) / len(downs),
    )


def _auc(ups: Sequence[float], downs: Sequence[float]) -> float:
    """Mann-Whitney's U over the number of pairs, by mean ranks."""
    ordered = sorted([*((score, True) for score in ups), *((score, False) for score in downs)])
    rank_sum, start = 0.0, 0
    while start < len(ordered):
        end = start
        while end < len(ordered) and ordered[end][0] == ordered[start][0]:
            end += 1
        mean_rank = (start + 1 + end) / 2
        rank_sum += mean_rank * sum(is_good for _, is_good in ordered[start:end])
        start = end
    return (rank_sum - len(ups) * (len(ups) + 1) / 2) / (len(ups) * len(downs))


def _standard_error(auc: float, num_good: int, num_bad: int) -> float:
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (num_good - 1) * (q1 - auc**2) + (num_bad - 1) * (q2 - auc**2)
    return math.sqrt(max(0.0, variance) / (num_good * num_bad))


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
