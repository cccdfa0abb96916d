"""The order of measuring: every side does one step, then every side the next."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes import Side
from benchmarks.results import OURS, Case


@dataclass(frozen=True)
class Plan:
    """A side: the module its process runs and with what.

    Attributes:
        module: as in `python -m MODULE`.
        settings: given to it.
        python: the interpreter.
        environment: variables that it is started with, beside this process's.
        missing: why this side cannot run here, None if it can.
    """

    module: str
    settings: dict[str, Any] = field(default_factory=dict)
    python: str = sys.executable
    environment: dict[str, str] = field(default_factory=dict)
    missing: str | None = None


def measure(case: Case, plans: Mapping[str, Plan], *, warmup: int, steps: int) -> Case:
    """Fill the case: A B A B ..., `warmup` rounds that do not count, then `steps` that do.

    A side of others whose process ends is left out from then on, and the case says why: it does not
    take the rest with it.

    Raises:
        RuntimeError: our own process ended.
    """
    case.settings |= {side: _told(plan.settings) for side, plan in plans.items()}
    case.settings |= {"warmup": warmup, "steps": steps}
    case.skipped |= {side: plan.missing for side, plan in plans.items() if plan.missing}
    with ExitStack() as running:
        sides: dict[str, Side] = {}
        for name in [name for name, plan in plans.items() if not plan.missing]:
            with _left_out_on_failure(case, name):
                sides[name] = running.enter_context(_start(plans[name]))
        for round_number in range(warmup + steps):
            for name in [name for name in sides if name not in case.skipped]:
                with _left_out_on_failure(case, name):
                    sample = sides[name].step()
                    if round_number >= warmup:
                        case.samples.setdefault(name, []).append(sample)
    return case


def _told(settings: dict[str, Any]) -> dict[str, Any]:
    """What a result file says of them: a folder is another on each machine, its name is not."""
    return {
        name: Path(value).name if name == "folder" else value for name, value in settings.items()
    }


def _start(plan: Plan) -> Side:
    return Side(plan.module, plan.settings, python=plan.python, environment=plan.environment)


@contextmanager
def _left_out_on_failure(case: Case, name: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if name.startswith(OURS):
            raise
        case.skipped[name] = str(error).strip().splitlines()[-1]
        case.samples.pop(name, None)
