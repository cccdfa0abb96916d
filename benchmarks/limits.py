"""How far from the machine's own limits the update and the decoding are.

The limits are measured in the same process and in alternation with what is compared to them:
the best matrix product in the model's dtype, and the fastest read and copy of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.processes import Side
from benchmarks.results import OURS, Case
from benchmarks.run import Run
from benchmarks.workloads import STEP_WORKLOADS, Workload, tiny

SAYS = (
    "The update's FLOP/s over the best matrix product's, decoding's bytes a second over the memory "
    "bandwidth, and the time of a decoding step outside matrix products and attention."
)
# Shares are formed of medians; these are what the samples hold.
_OF_THE_UPDATE = ("update_flops_per_second", "product_flops_per_second")
_OF_DECODING = ("decode_bytes_per_second", "memory_bytes_per_second")


def run(settings: Run) -> Iterator[Case]:
    """One case for each workload."""
    for workload in STEP_WORKLOADS:
        yield _case(settings, workload)


def _case(settings: Run, workload: Workload) -> Case:
    if settings.quick:
        workload = tiny(workload)
    asked = {"folder": settings.folder, "workload": workload.to_dict(), "quick": settings.quick}
    case = Case(workload.name, settings=asked)
    with Side("benchmarks.limit_step", asked) as side:
        case.settings["counted"] = {k: v for k, v in side.ready.items() if k != "cpu_seconds"}
        if not settings.quick:
            side.step()
        case.samples[OURS] = [side.step() for _ in range(1 if settings.quick else 3)]
    case.checks |= shares(case.medians[OURS])
    return case


def shares(medians: dict[str, float]) -> dict[str, Any]:
    """What of each limit is reached, and the parts of an update and of a decoding step."""
    return {
        "update's FLOP/s over the best product's": _ratio(medians, _OF_THE_UPDATE),
        "decoding's bytes/s over the memory bandwidth": _ratio(medians, _OF_DECODING),
        **_parts("s of an update", medians, "update", "update", unit=1.0),
        **_parts("ms of a decoding step", medians, "decode", "decode_step_seconds", unit=1e3),
    }


def _parts(
    head: str, medians: dict[str, float], prefix: str, whole: str, *, unit: float
) -> dict[str, float]:
    product, attention = (
        unit * medians[f"{prefix}_{kind}_seconds"] for kind in ("product", "attention")
    )
    total = unit * medians[whole]
    return {
        head: total,
        f"{head} in matrix products": product,
        f"{head} in attention": attention,
        f"{head} elsewhere": total - product - attention,
    }


def _ratio(medians: dict[str, float], names: tuple[str, str]) -> float:
    over, under = names
    return medians[over] / medians[under]
