"""What a conversation costs as it gets more turns, more siblings, a longer history.

Every point is a whole training step of `Trainer` in a process of its own. The exponent is the slope
of log cost against log size: 1 is linear. Cost and size are per step, so a group's exponent below 1
says that what a group shares is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.machine import BASE_MODEL
from benchmarks.processes import Side
from benchmarks.random_models import SMALL, write_model
from benchmarks.results import OURS, Case
from benchmarks.run import Run
from benchmarks.workloads import Workload, tiny

SAYS = (
    "Seconds and peak memory of a training step by the number of turns, of conversations in a "
    "group, and of tokens before the first answer."
)

_TURNS = Workload("turns", prompt_tokens=96, turns=1, answer_tokens=16, user_tokens=24, rows=8)
_GROUP = Workload("group", prompt_tokens=256, turns=2, answer_tokens=16, user_tokens=24)
_HISTORY = Workload("history", prompt_tokens=512, turns=1, answer_tokens=16, group=4, rows=4)

POINTS: dict[str, list[Workload]] = {
    "turns": [replace(_TURNS, turns=turns) for turns in (1, 2, 4, 8, 16, 32)],
    "group": [replace(_GROUP, group=size, rows=size) for size in (2, 4, 8, 16, 32, 64)],
    "history": [replace(_HISTORY, prompt_tokens=size) for size in (512, 1024, 2048, 4096, 7936)],
}


def run(settings: Run) -> list[Case]:
    """One case for each direction."""
    with TemporaryDirectory() as folder:
        model = settings.folder
        if not settings.quick:
            # a small random model: what grows is seen as well, and 8,000 tokens take seconds
            model = str(write_model(SMALL, Path(folder), tokenizer=BASE_MODEL))
        return [
            _case(name, workloads, model, quick=settings.quick)
            for name, workloads in POINTS.items()
        ]


def _case(name: str, workloads: Sequence[Workload], folder: str, *, quick: bool) -> Case:
    if quick:
        workloads = [replace(tiny(workloads[0]), rows=rows) for rows in (2, 4)]
    points = [_measure(workload, folder, steps=1 if quick else 2) for workload in workloads]
    case = Case(name, settings={"points": [one.to_dict() for one in workloads]})
    for workload, point in zip(workloads, points, strict=True):
        case.samples[f"{OURS}, {_size(name, workload)}"] = [point]
    sizes = [workload.rows * workload.conversation_tokens for workload in workloads]
    case.settings["tokens"] = sizes
    for quantity in ("seconds", "rollout", "update", "peak_bytes"):
        values = [point[quantity] for point in points]
        if quantity == "peak_bytes":  # what the step added to a loaded model
            values = [point["peak_bytes"] - point["ready_bytes"] for point in points]
        case.checks[f"exponent of {quantity} in tokens"] = exponent(sizes, values)
    return case


def _size(name: str, workload: Workload) -> str:
    sizes = {"turns": workload.turns, "group": workload.group, "history": workload.prompt_tokens}
    return f"{sizes[name]} ({workload.rows} x {workload.conversation_tokens} tokens)"


def _measure(workload: Workload, folder: str, *, steps: int) -> dict[str, Any]:
    """The fastest of `steps` steps after one that does not count: noise only adds."""
    with Side("benchmarks.our_step", {"folder": folder, "workload": workload.to_dict()}) as side:
        side.step()
        fastest = min((side.step() for _ in range(steps)), key=lambda sample: sample["seconds"])
        return {**fastest, "ready_bytes": side.ready["peak_bytes"]}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Least-squares slope of log cost in log size; NaN where a cost is not above 0."""
    if min(costs) <= 0:
        return math.nan
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    along = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return along / sum((a - mean_x) ** 2 for a in x)
