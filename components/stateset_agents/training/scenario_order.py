"""Which scenarios a step visits: functions of seed and step, so there is no state to save."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import TypeVar

Item = TypeVar("Item")


def scenarios_of_step(
    scenarios: Sequence[Item], step: int, groups_per_step: int, seed: int, *, shuffled: bool = True
) -> list[Item]:
    """The scenarios of `step` (from 0): the list is gone through again and again, each time whole
    and in a new order, or in its own if not `shuffled`.
    """
    places = _places_of_step(len(scenarios), step, groups_per_step, seed, shuffled)
    return [scenarios[n] for n in places]


def further_scenarios(
    scenarios: Sequence[Item], step: int, groups_per_step: int, seed: int, *, shuffled: bool = True
) -> Iterator[Item]:
    """What may replace scenarios of `step` that teach nothing: those that the step does not visit
    (all, if it visits each), in an order of their own, again and again. `shuffled` is the step's.
    """
    visited = set(_places_of_step(len(scenarios), step, groups_per_step, seed, shuffled))
    others = [n for n in range(len(scenarios)) if n not in visited] or list(range(len(scenarios)))
    random.Random(f"further scenarios {seed} {step}").shuffle(others)
    return (scenarios[n] for n in cycle(others))


def _places_of_step(
    count: int, step: int, groups_per_step: int, seed: int, shuffled: bool
) -> list[int]:
    places = []
    for visit in range(step * groups_per_step, (step + 1) * groups_per_step):
        round_number, place = divmod(visit, count)
        order = list(range(count))
        if shuffled:
            random.Random(f"scenario order {seed} {round_number}").shuffle(order)
        places.append(order[place])
    return places
