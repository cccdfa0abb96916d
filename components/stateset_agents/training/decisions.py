"""Decisions: what a critic values, and what was earned at each.

Owns how a conversation becomes a chain of decisions, a token or a whole answer each, and where in
it rewards stand. What the user says between two answers is no decision. It does not know values.

Notation: B rows, T tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from stateset_agents.exceptions import TrainingError
from stateset_agents.training.algorithm_settings import ValueLevel
from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.batching import StepRow, StepRows
from stateset_agents.training.config import Credit


@dataclass(frozen=True, slots=True)
class _Place:
    """One sampled token: where it is in the batch, and the turn that it was sampled for."""

    row: int
    token: int
    turn: int


def with_decisions(
    batch: TrainingBatch, step: StepRows, *, value_level: ValueLevel, credit: Credit
) -> TrainingBatch:
    """Add `decision_index`, `value_weights` and `rewards` to a batch that has every row of `step`.

    A conversation's decisions are in the order of its turns, through all of its rows. The reward of
    the whole conversation stands at its last sampled token; with `credit="turn"` each turn's own at
    that turn's last one, or, where nothing of the turn is trained on, at the last one before it.
    A conversation's rewards so add up to what was earned, wherever they stand.

    Raises:
        TrainingError: turns are to be credited, and the reward function does not tell them apart.
    """
    index = torch.zeros(batch.token_ids.shape, dtype=torch.int64)
    first = torch.zeros(batch.token_ids.shape, dtype=torch.bool)
    rewards = torch.zeros(batch.token_ids.shape, dtype=torch.float32)
    for trajectory, places in _places(step.rows).items():
        decision, before = -1, None
        for place in places:
            if value_level == "token" or place.turn != before:
                decision, before = decision + 1, place.turn
                first[place.row, place.token] = True
            index[place.row, place.token] = decision
        for place, reward in _earned(step, trajectory, places, credit):
            rewards[place.row, place.token] += reward
    return replace(
        batch,
        decision_index=index,
        value_weights=first.to(torch.float32) / max(1, int(first.sum())),
        rewards=rewards,
    )


def _places(rows: Sequence[StepRow]) -> dict[int, list[_Place]]:
    """Sampled tokens by trajectory, in the order of turns and within a turn of rows."""
    found: dict[int, list[_Place]] = defaultdict(list)
    for number, row in enumerate(rows):
        found[row.trajectory] += [
            _Place(number, token, turn)
            for token, (sampled, turn) in enumerate(zip(row.loss_mask, row.turn_index, strict=True))
            if sampled
        ]
    for places in found.values():
        places.sort(key=lambda place: place.turn)
    return found


def _earned(
    step: StepRows, trajectory: int, places: Sequence[_Place], credit: Credit
) -> list[tuple[_Place, float]]:
    if credit == "episode":
        return [(places[-1], float(step.rewards[trajectory]))]
    told = step.turn_rewards[trajectory]
    if told is None:
        raise TrainingError(
            'credit="turn" needs a reward for every assistant turn, and the reward function gave '
            'none: return turn_scores in its RewardResult, or set credit="episode"'
        )
    earned = []
    for turn, reward in enumerate(told):
        until = [place for place in places if place.turn <= turn]
        earned.append((until[-1] if until else places[0], reward))
    return earned
