"""A whole training step against TRL's `GRPOTrainer`: same model, adapter, loss and lengths."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from benchmarks.alternate import Plan, measure
from benchmarks.processes import Side
from benchmarks.results import OURS, Case
from benchmarks.run import Run
from benchmarks.workloads import MULTI_TURN, PREFIX_HEAVY, SINGLE_TURN, Workload, tiny

SAYS = (
    "Seconds of one optimizer step (rollout and update) and peak memory of the process, ours and "
    "TRL's, LoRA of rank 16 on every linear layer. In brackets: TRL's median over ours."
)

_CHECKED = (
    "loss",
    "trl_loss",
    "difference",
    "gradient_norm",
    "trl_gradient_norm",
    "gradient_difference",
)

# What TRL was fastest with, among what `docs/performance.md` lists: rows in one forward pass.
_MICRO_BATCH_ROWS = {SINGLE_TURN.name: 16, MULTI_TURN.name: 16, PREFIX_HEAVY.name: 4}
# A step of TRL takes a minute or more; the ones of many turns most.
_STEPS = {SINGLE_TURN.name: 3, MULTI_TURN.name: 2, PREFIX_HEAVY.name: 3}


def trl_settings(workload: Workload) -> dict[str, Any]:
    """How `trl_step` sets TRL for a workload."""
    return {
        "dtype": "bfloat16",
        "attention": "sdpa",
        "autocast": True,
        "continuous_batching": False,
        "micro_batch_rows": _MICRO_BATCH_ROWS[workload.name],
    }


def missing_trl() -> str | None:
    """Why TRL cannot take part, None if it can."""
    return None if find_spec("trl") else "trl is not installed; install the extra `dev`"


def run(settings: Run) -> Iterator[Case]:
    """Every workload, each with the check that both sides compute the same loss."""
    for workload in (SINGLE_TURN, MULTI_TURN, PREFIX_HEAVY):
        yield _case(settings, workload)


def _case(settings: Run, workload: Workload) -> Case:
    trl = trl_settings(workload)
    if settings.quick:
        workload, trl = tiny(workload), {**trl, "micro_batch_rows": 2}
    missing = missing_trl()
    common = {"folder": settings.folder, "workload": workload.to_dict()}
    case = measure(
        Case(workload.name),
        {
            OURS: Plan("benchmarks.our_step", common),
            "trl": Plan("benchmarks.trl_step", {**common, "trl": trl}, missing=missing),
        },
        warmup=0 if settings.quick else 1,
        steps=1 if settings.quick else _STEPS[workload.name],
    )
    if missing is None:
        with Side("benchmarks.agreement", {**common, "trl": trl}) as both:
            case.checks |= {name: both.ready[name] for name in _CHECKED}
    return case
