"""Studies of arithmetic: what a worker does with a trial takes no time, dying included."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

from stateset_agents.training.hpo.spaces import parse_space
from stateset_agents.training.hpo.study import StoredStudy, StudyPlan
from stateset_agents.training.hpo.summary import TrialRecord

SPACE = parse_space(
    {
        "learning_rate": {"type": "loguniform", "low": 1e-5, "high": 1e-1},
        "temperature": {"type": "uniform", "low": 0.5, "high": 1.5},
        "num_generations": {"type": "categorical", "choices": [2, 4, 8]},
    }
)
MULTIPROCESSING = multiprocessing.get_context("forkserver")
MULTIPROCESSING.set_forkserver_preload(["optuna", "stateset_agents.training.hpo.study"])


def make_plan(name: str = "s", **changes: Any) -> StudyPlan:
    settings: dict[str, Any] = {
        "aims": {"reward": "maximize"}, "space": SPACE, "n_trials": 12, "definition": {"data": "1"},
    }  # fmt: skip
    return StudyPlan(name, **{**settings, **changes})


def value(params: dict[str, Any]) -> float:
    return -((params["temperature"] - 1.1) ** 2) + params["num_generations"] / 100


def work(address: str, plan: StudyPlan, die_at: int | None = None, after: str = "take") -> None:
    """Run trials until none is left; as trial `die_at` was taken, or half told, die."""
    study = StoredStudy(address, plan)
    while (trial := study.take()) is not None:
        if trial.number == die_at and after == "take":
            os.kill(os.getpid(), signal.SIGKILL)
        study.report(trial, 1, value(trial.params) / 2)
        if trial.number == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        study.finish(trial, "complete", {"reward": value(trial.params)}, 0.0)


def in_process(target: Callable[..., None], *arguments: Any) -> Any:
    process = MULTIPROCESSING.Process(target=target, args=arguments)
    process.start()
    return process


def outcome(records: list[TrialRecord]) -> list[tuple[int, dict[str, Any], Any, str]]:
    return [(one.number, one.params, one.values, one.state) for one in records]
