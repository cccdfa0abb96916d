"""Which scenarios a step visits: a function of seed and step, so it has no state to save."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def scenarios_of_step(
    scenarios: Sequence[Item], step: int, groups_per_step: int, seed: int
) -> list[Item]:
    """The scenarios of `step` (from 0): the list is gone through again and again, each time whole
    and in a new order.
    """
    chosen = []
    for visit in range(step * groups_per_step, (step + 1) * groups_per_step):
        round_number, place = divmod(visit, len(scenarios))
        order = list(range(len(scenarios)))
        random.Random(f"scenario order {seed} {round_number}").shuffle(order)
        chosen.append(scenarios[order[place]])
    return chosen
