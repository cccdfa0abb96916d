"""The step on an accelerator: models of 0.5 and 1.5 billion random weights, against TRL.

Where there is none, this says so and measures nothing.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.alternate import Plan, measure
from benchmarks.random_models import HALF_BILLION, ONE_AND_A_HALF_BILLION, Shape, write_model
from benchmarks.results import OURS, Case
from benchmarks.run import Run
from benchmarks.versus_trl import missing_trl, trl_settings
from benchmarks.workloads import STEP_WORKLOADS, Workload

SAYS = "Seconds of a training step and peak memory on an accelerator, by the model's shape."
MISSING = "no accelerator: torch sees no CUDA device"


def run(settings: Run) -> list[Case]:
    """Each shape on each workload; none without a device."""
    import torch

    shapes = (HALF_BILLION, ONE_AND_A_HALF_BILLION)
    if settings.quick or not torch.cuda.is_available():
        why = "quick runs leave it out" if settings.quick else MISSING
        return [Case(shape.name, skipped={OURS: why, "trl": why}) for shape in shapes]
    cases = []
    for shape in shapes:
        with TemporaryDirectory() as folder:
            model = write_model(shape, Path(folder), tokenizer=settings.model)
            cases += [_case(shape, workload, str(model)) for workload in STEP_WORKLOADS]
    return cases


def _case(shape: Shape, workload: Workload, folder: str) -> Case:
    common = {"folder": folder, "workload": workload.to_dict()}
    trl = {**trl_settings(workload), "micro_batch_rows": workload.group}
    plans = {
        OURS: Plan("benchmarks.our_step", common),
        "trl": Plan("benchmarks.trl_step", {**common, "trl": trl}, missing=missing_trl()),
    }
    return measure(Case(f"{shape.name}, {workload.name}"), plans, warmup=2, steps=5)
