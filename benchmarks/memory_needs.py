"""The memory formula against measured peaks: `python -m benchmarks.memory_needs [--model FOLDER]`.

Each row is a process of its own that trains one step of `single_turn`, two groups of 8; its peak
(VmHWM) stands beside what `stateset_agents.training.memory` foretells. Prints the table of
docs/MEMORY_REQUIREMENTS_GUIDE.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import BASE_MODEL
from benchmarks.our_step import DEFAULTS
from benchmarks.processes import Side
from benchmarks.workloads import SINGLE_TURN, Workload, tiny

GIB = 2**30

# What differs from a step with an adapter in bfloat16. Two groups have 2,100 tokens, each shared
# prefix counted once, so every budget here is filled.
ROWS: dict[str, dict[str, Any]] = {
    "adapter, bf16, 512 tokens at once": {"micro_batch_tokens": 512},
    "adapter, bf16, 1024": {"micro_batch_tokens": 1024},
    "adapter, bf16, 2048": {"micro_batch_tokens": 2048},
    "adapter, fp32, 1024": {"micro_batch_tokens": 1024, "bf16": False},
    "all weights, bf16, 1024": {"micro_batch_tokens": 1024, "use_lora": False},
}


def lengths(workload: Workload) -> dict[str, int]:
    """The formula counts as many tokens as the settings allow; so the settings allow these."""
    return {
        "max_prompt_length": workload.prompt_tokens,
        "max_completion_length": workload.conversation_tokens - workload.prompt_tokens + 1,
    }


def measured(folder: Path, workload: Workload, training: dict[str, Any]) -> float:
    """The peak of a process that trains one step, in GiB."""
    settings = {"folder": str(folder), "workload": workload.to_dict(), "training": training}
    with Side("benchmarks.our_step", settings) as side:
        return float(side.step()["peak_bytes"]) / GIB


def foretold(folder: Path, workload: Workload, training: dict[str, Any]) -> dict[str, float]:
    """The parts of the formula, in GiB."""
    from stateset_agents.training.config import TrainingConfig
    from stateset_agents.training.memory import memory_need, read_shape

    shape = read_shape(folder)
    if shape is None:
        raise SystemExit(f"{folder}/config.json does not tell the model's shape")
    batch = {
        "per_device_train_batch_size": workload.groups,
        "num_generations": workload.group,
    }
    need = memory_need(shape, TrainingConfig(**{**DEFAULTS, **batch, **training}))
    parts = ("weights", "optimizer", "conversations", "activations", "process", "total")
    return {name: float(getattr(need, name)) / GIB for name in parts}


def main(arguments: list[str] | None = None) -> None:
    """Measure every row and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_needs", description=__doc__)
    parser.add_argument("--model", type=Path, default=BASE_MODEL, help="folder of the model")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, meaningless numbers")
    given = parser.parse_args(arguments)
    workload = tiny(SINGLE_TURN) if given.quick else SINGLE_TURN
    peaks = {}
    for name, changed in ROWS.items():
        training = {**lengths(workload), **changed}
        peaks[name] = measured(given.model.resolve(), workload, training)
        sys.stderr.write(json.dumps({name: peaks[name]}) + "\n")
    parts = ("weights", "optimizer", "conversations", "activations", "process", "total")
    sys.stdout.write("| " + " | ".join(["two groups of 8", *parts, "measured"]) + " |\n")
    sys.stdout.write("|---" * (len(parts) + 2) + "|\n")
    for name, changed in ROWS.items():
        told = foretold(given.model.resolve(), workload, {**lengths(workload), **changed})
        cells = [f"{told[part]:.2f}" for part in parts]
        sys.stdout.write("| " + " | ".join([name, *cells, f"{peaks[name]:.2f}"]) + " |\n")


if __name__ == "__main__":
    main()
