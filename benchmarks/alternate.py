"""The order of measuring: every side does one step, then every side the next."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.processes import Side
from benchmarks.results import Case


@dataclass(frozen=True)
class Plan:
    """A side: the module its process runs and with what.

    Attributes:
        module: as in `python -m MODULE`.
        settings: given to it.
        python: the interpreter, None for this one.
        missing: why this side cannot run here, None if it can.
    """

    module: str
    settings: dict[str, Any] = field(default_factory=dict)
    python: str | None = None
    missing: str | None = None


def measure(case: Case, plans: Mapping[str, Plan], *, warmup: int, steps: int) -> Case:
    """Fill the case: A B A B ..., `warmup` rounds that do not count, then `steps` that do.

    Raises:
        RuntimeError: a side's process ended.
    """
    case.settings |= {side: plan.settings for side, plan in plans.items()}
    case.settings |= {"warmup": warmup, "steps": steps}
    case.skipped |= {side: plan.missing for side, plan in plans.items() if plan.missing}
    with ExitStack() as running:
        sides = {
            name: running.enter_context(_start(plan))
            for name, plan in plans.items()
            if not plan.missing
        }
        for round_number in range(warmup + steps):
            for name, side in sides.items():
                sample = side.step()
                if round_number >= warmup:
                    case.samples.setdefault(name, []).append(sample)
    return case


def _start(plan: Plan) -> Side:
    if plan.python is None:
        return Side(plan.module, plan.settings)
    return Side(plan.module, plan.settings, python=plan.python)
