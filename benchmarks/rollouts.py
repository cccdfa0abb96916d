"""Sampling alone, on the multi-turn workload: our engine, transformers' own generation, vLLM."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.alternate import Plan, measure
from benchmarks.results import OURS, Case
from benchmarks.run import Run, vllm_python
from benchmarks.workloads import (
    MULTI_TURN,
    EndlessTokenizer,
    Workload,
    between,
    opening,
    scenarios,
    tiny,
)
from stateset_agents.inference.loading import load_tokenizer, resolve_dtype

SAYS = (
    "Seconds of one rollout and sampled tokens a second, keys and values of earlier rollouts "
    "dropped as after a weight update. In brackets: that side's median over ours."
)


def run(settings: Run) -> list[Case]:
    """One case; vLLM takes part where its environment is."""
    workload = tiny(MULTI_TURN) if settings.quick else MULTI_TURN
    common = {
        "folder": settings.folder,
        "answer_tokens": workload.answer_tokens,
        **tokens_of(workload, settings.folder),
    }
    dtype = str(resolve_dtype("auto")).removeprefix("torch.")
    python = vllm_python()
    plans = {
        OURS: Plan("benchmarks.our_rollout", {**common, "group": workload.group}),
        "generate": Plan("benchmarks.hf_rollout", {**common, "method": "generate"}),
        "generate_batch": Plan("benchmarks.hf_rollout", {**common, "method": "generate_batch"}),
        "vllm": Plan(
            "benchmarks.vllm_rollout",
            {**common, "dtype": dtype},
            python=str(python),
            environment=_vllm_environment(python),
            missing="quick runs leave vLLM out" if settings.quick else _missing_vllm(),
        ),
    }
    case = Case(workload.name, settings={"workload": workload.to_dict()})
    measure(case, plans, warmup=0 if settings.quick else 1, steps=1 if settings.quick else 3)
    for side in plans:  # thousands of ids that say nothing
        for name in ("prompts", "between"):
            case.settings[side] = {k: v for k, v in case.settings[side].items() if k != name}
    return [case]


def tokens_of(workload: Workload, folder: str) -> dict[str, Any]:
    """`prompts`, one list of ids a row, and `between`, for each row the ids after each answer."""
    tokenizer = EndlessTokenizer(load_tokenizer(folder).hf)
    chosen = scenarios(workload, tokenizer)[: workload.groups]
    rows = [scenario for scenario in chosen for _ in range(workload.group)]
    return {
        "prompts": [tokenizer.render(opening(row)) for row in rows],
        "between": [
            [between(row, turn, tokenizer) for turn in range(workload.turns - 1)] for row in rows
        ],
    }


def _vllm_environment(python: Path) -> dict[str, str]:
    """What vLLM is fastest with on a processor: Intel's OpenMP, and a thread bound to each core."""
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    chosen = {"VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_CPU_KVCACHE_SPACE": "2"}
    openmp = python.parent.parent / "lib" / "libiomp5.so"
    return chosen | ({"LD_PRELOAD": str(openmp)} if openmp.is_file() else {})


def _missing_vllm() -> str | None:
    python = vllm_python()
    if not python.is_file():
        return (
            f"{python} does not exist; `make bench-vllm-env` makes that environment, or name an "
            "interpreter that has vLLM in STATESET_VLLM_PYTHON"
        )
    found = subprocess.run(
        [python, "-c", "import importlib.metadata as m; print(m.version('vllm-cpu'))"],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if found.returncode == 0 else f"{python} has no vllm-cpu"
