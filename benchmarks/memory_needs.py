"""The memory formula against measured peaks: `python -m benchmarks.memory_needs [--model FOLDER]`.

Each row is a process of its own that trains two steps (Adam's moments are there from the end of the
first one on); its peak (VmHWM) stands beside what
`stateset_agents.training.memory` says of the same settings. Prints the table of
docs/MEMORY_REQUIREMENTS_GUIDE.md, row by row.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import BASE_MODEL
from benchmarks.our_step import training_config
from benchmarks.processes import Side
from benchmarks.workloads import MULTI_TURN, PREFIX_HEAVY, SINGLE_TURN, Workload, tiny

GIB = 2**30

# The workload, and what differs from a step with an adapter in bfloat16. Two groups of
# `single_turn` have 2,100 tokens, each shared prefix counted once, so every budget of it is filled.
ROWS: dict[str, tuple[Workload, dict[str, Any]]] = {
    "adapter, bf16, 512 tokens at once": (SINGLE_TURN, {"micro_batch_tokens": 512}),
    "adapter, bf16, 1024": (SINGLE_TURN, {"micro_batch_tokens": 1024}),
    "adapter, bf16, 2048, prompt 1024": (PREFIX_HEAVY, {"micro_batch_tokens": 2048}),
    "adapter, bf16, 2048, four turns": (MULTI_TURN, {"micro_batch_tokens": 2048}),
    "adapter, fp32, 1024": (SINGLE_TURN, {"micro_batch_tokens": 1024, "bf16": False}),
    "all weights, bf16, 512": (SINGLE_TURN, {"micro_batch_tokens": 512, "use_lora": False}),
    "all weights, bf16, 1024": (SINGLE_TURN, {"micro_batch_tokens": 1024, "use_lora": False}),
    "all weights, fp32, 512": (
        SINGLE_TURN,
        {"micro_batch_tokens": 512, "use_lora": False, "bf16": False},
    ),
    "adapter, bf16, 512, a critic of its own": (
        SINGLE_TURN,
        {"micro_batch_tokens": 512, "algorithm": "ppo", "critic": "own"},
    ),
    "all weights, bf16, pairs": (
        SINGLE_TURN,
        {"use_lora": False, "algorithm": "dpo"},
    ),
}
_PARTS = ("weights", "optimizer", "conversations", "activations", "critic", "process", "total")


def measured(folder: Path, workload: Workload, training: dict[str, Any]) -> float:
    """The peak of a process that trains two steps, in GiB."""
    settings = {"folder": str(folder), "workload": workload.to_dict(), "training": training}
    with Side("benchmarks.our_step", settings) as side:
        side.step()
        return float(side.step()["peak_bytes"]) / GIB


def foretold(folder: Path, workload: Workload, training: dict[str, Any]) -> dict[str, float]:
    """The parts of the formula, in GiB."""
    from stateset_agents.training.memory import memory_need, read_shape

    shape = read_shape(folder)
    if shape is None:
        raise SystemExit(f"{folder}/config.json does not tell the model's shape")
    need = memory_need(shape, training_config(workload, training))
    return {name: float(getattr(need, name)) / GIB for name in _PARTS}


def main(arguments: list[str] | None = None) -> None:
    """Measure every row and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_needs", description=__doc__)
    parser.add_argument("--model", type=Path, default=BASE_MODEL, help="folder of the model")
    parser.add_argument("--row", action="append", choices=ROWS, help="only this one; repeatable")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, meaningless numbers")
    given = parser.parse_args(arguments)
    folder = given.model.resolve()
    sys.stdout.write("| " + " | ".join(["", *_PARTS, "measured"]) + " |\n")
    sys.stdout.write("|---" * (len(_PARTS) + 2) + "|\n")
    for name in given.row or ROWS:
        workload, training = ROWS[name]
        workload = tiny(workload) if given.quick else workload
        told = foretold(folder, workload, training)
        peak = measured(folder, workload, training)
        cells = [f"{told[part]:.2f}" for part in _PARTS]
        sys.stdout.write("| " + " | ".join([name, *cells, f"{peak:.2f}"]) + " |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
