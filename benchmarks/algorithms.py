"""What each algorithm of the table costs beside GRPO, on the multi-turn workload.

A new row of the table is measured without a change here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.alternate import Plan, measure
from benchmarks.results import OURS, Case
from benchmarks.run import Run
from benchmarks.workloads import MULTI_TURN, tiny
from stateset_agents.training.algorithms import ALGORITHMS, Algorithm

SAYS = (
    "Seconds of a training step and peak memory by algorithm, each in alternation with GRPO. In "
    "brackets: that algorithm's median over GRPO's."
)
_REFERENCE: Algorithm = "grpo"
# Processes at once, GRPO's included: each keeps a model and what a step leaves behind.
_AT_ONCE = 4


def run(settings: Run) -> list[Case]:
    """Cases of GRPO (as our side) and a few others each."""
    workload = tiny(MULTI_TURN) if settings.quick else replace(MULTI_TURN, rows=MULTI_TURN.group)
    others = [name for name in ALGORITHMS if name != _REFERENCE]
    cases = []
    for start in range(0, len(others), _AT_ONCE - 1):
        part = others[start : start + _AT_ONCE - 1]
        common = {"folder": settings.folder, "workload": workload.to_dict()}
        plans = {OURS: Plan("benchmarks.our_step", {**common, "training": _training(_REFERENCE)})}
        for name in part:
            training = _training(name)
            plans[name] = Plan("benchmarks.our_step", {**common, "training": training})
        case = Case(f"{_REFERENCE} and {', '.join(part)}")
        measure(case, plans, warmup=0 if settings.quick else 1, steps=1 if settings.quick else 2)
        cases.append(case)
    return cases


def _training(name: Algorithm) -> dict[str, Any]:
    # playing more groups in the place of others would be another amount of work, not another cost
    training = {"algorithm": name, "resampling_rounds": 0}
    # a trust region computes in float32, and that is part of what it costs
    return {**training, "bf16": False} if ALGORITHMS[name].trust_region else training
