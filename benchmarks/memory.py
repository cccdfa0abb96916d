"""Peak memory when both sides are set for memory: few rows in one forward pass.

`versus_trl.py` compares memory at the settings that are fastest. Here each side is shown at both,
since what a setting costs in time belongs to what it saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks.alternate import Plan, measure
from benchmarks.results import OURS, Case
from benchmarks.run import Run
from benchmarks.versus_trl import missing_trl, trl_settings
from benchmarks.workloads import SINGLE_TURN, tiny

SAYS = (
    "Peak memory and seconds of a training step on one group of `single_turn`, each side as it is "
    "fastest and with two rows in a forward pass. In brackets: that side's median over ours."
)
_ROWS = 2


def run(settings: Run) -> list[Case]:
    """One case."""
    workload = replace(SINGLE_TURN, rows=SINGLE_TURN.group)
    if settings.quick:
        workload = tiny(workload)
    common = {"folder": settings.folder, "workload": workload.to_dict()}
    own = workload.conversation_tokens - workload.prompt_tokens + 1
    # the shared prompt counts once in a micro-batch's budget
    budget = workload.prompt_tokens - 1 + _ROWS * own
    trl = trl_settings(SINGLE_TURN)
    plans = {
        OURS: Plan("benchmarks.our_step", common),
        f"{OURS}, {_ROWS} rows": Plan(
            "benchmarks.our_step", {**common, "training": {"micro_batch_tokens": budget}}
        ),
        "trl": _trl(common, {**trl, "micro_batch_rows": workload.rows}),
        f"trl, {_ROWS} rows": _trl(common, {**trl, "micro_batch_rows": _ROWS}),
    }
    case = Case(workload.name, settings={"workload": workload.to_dict()})
    return [measure(case, plans, warmup=0, steps=1 if settings.quick else 2)]


def _trl(common: Mapping[str, object], chosen: Mapping[str, object]) -> Plan:
    return Plan("benchmarks.trl_step", {**common, "trl": chosen}, missing=missing_trl())
