"""Run the benchmarks: `python -m benchmarks [--only NAME] [--quick] [--model FOLDER]`."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import BASE_MODEL
from benchmarks.results import RESULTS, Case, Result, write_table
from benchmarks.run import Run

# In the order in which they run; the first is what people ask about first.
BENCHMARKS = {
    "trl": "benchmarks.versus_trl",
    "memory": "benchmarks.memory",
    "limits": "benchmarks.limits",
    "rollout": "benchmarks.rollouts",
    "scaling": "benchmarks.scaling",
    "algorithms": "benchmarks.algorithms",
    "startup": "benchmarks.startup",
    "accelerator": "benchmarks.shapes",
}


def main(arguments: list[str] | None = None) -> None:
    """Run what was asked for, write each result, then the table of all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(BENCHMARKS), help="repeatable")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, meaningless numbers")
    parser.add_argument("--model", type=Path, default=BASE_MODEL, help="folder of the model")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    given = parser.parse_args(arguments)
    if not given.model.is_dir():
        parser.error(f"{given.model} is no folder; `python -m tasks.fetch_base_model` makes it")
    for name in given.only or BENCHMARKS:
        benchmark = importlib.import_module(BENCHMARKS[name])
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
        cases: list[Case] = []
        for case in benchmark.run(Run(given.model.resolve(), given.quick)):
            # written after each case: a later one that dies does not take the earlier ones with it
            cases.append(case)
            seconds = time.perf_counter() - clock
            result = Result(name, benchmark.SAYS, given.quick, cases, seconds, started)
            path = result.write(given.results)
            sys.stdout.write(f"{path}: {case.name} after {seconds:.0f} s\n")
            sys.stdout.flush()
    sys.stdout.write(f"{write_table(given.results)}\n")


if __name__ == "__main__":
    main()
