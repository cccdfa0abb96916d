"""A study keeps what came of its trials, whoever dies: same numbers and parameters, none twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stateset_agents.exceptions import ConfigurationError
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


def test_workers_that_are_killed_lose_no_trial_and_change_none(tmp_path: Path) -> None:
    plan = make_plan(n_trials=14)  # TPE looks at earlier trials from the eleventh on
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    work(whole, plan)
    for die_at, after in ((0, "take"), (4, "report"), (11, "take")):
        process = in_process(work, cut, plan, die_at, after)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        study = StoredStudy(cut, plan)
        assert [one.number for one in study.records()] == list(range(die_at))
        assert study.is_running()
    work(cut, plan)
    study = StoredStudy(cut, plan)
    assert outcome(study.records()) == outcome(StoredStudy(whole, plan).records())
    assert not study.is_running()


def test_a_living_workers_trial_is_nobody_elses(tmp_path: Path) -> None:
    plan = make_plan(n_trials=2)
    address = str(tmp_path / "journal")
    mine = StoredStudy(address, plan).take()
    assert mine is not None
    process = in_process(work, address, plan)
    process.join()
    assert process.exitcode == 0
    assert [one.number for one in StoredStudy(address, plan).records()] == [1]
    StoredStudy(address, plan).finish(mine, "complete", {"reward": 0.5}, 1.0)
    assert [one.number for one in StoredStudy(address, plan).records()] == [0, 1]


def test_two_studies_at_once_in_one_storage_do_not_touch_each_other(tmp_path: Path) -> None:
    address = str(tmp_path / "both")
    plans = [make_plan("one"), make_plan("two", seed=7)]
    processes = [in_process(work, address, plan) for plan in (*plans, *plans)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for plan in plans:
        records = StoredStudy(address, plan).records()
        assert [one.number for one in records] == list(range(12))
        assert [one.values for one in records] == [{"reward": value(one.params)} for one in records]
    one, two = (StoredStudy(address, plan).records() for plan in plans)
    assert not {one[0].params["temperature"]} & {trial.params["temperature"] for trial in two}


def test_a_study_of_the_same_name_is_taken_only_for_the_same_search(tmp_path: Path) -> None:
    address = str(tmp_path / "journal")
    StoredStudy(address, make_plan())
    StoredStudy(address, make_plan(n_trials=99))  # more of the same
    for changes, word in (
        ({"space": {**SPACE, "temperature": SPACE["learning_rate"]}}, "search space"),
        ({"aims": {"reward": "minimize"}}, "objectives"),
        ({"seed": 3}, "search: it has seed 0"),
        ({"definition": {"data": "2"}}, "data: it has 1, this search 2"),
    ):
        with pytest.raises(ConfigurationError, match=word) as caught:
            StoredStudy(address, make_plan(**changes))
        assert "Give this one another study_name" in str(caught.value)


def steps_of_bad_trials(address: str, **changes: Any) -> list[int]:
    """Twelve trials of 10 steps, every second one bad at each step: how many steps these got."""
    plan = make_plan(
        n_trials=12, total_steps=10, pruning_warmup_steps=2, sampler="random", **changes
    )
    study = StoredStudy(address, plan)
    got = []
    while (trial := study.take()) is not None:
        bad, state, step = trial.number % 2 == 1, "complete", 0
        for step in range(1, 11):
            noise = (7 * step + 3 * trial.number) % 5 / 100
            if study.report(trial, step, (0.2 if bad else 0.8) + step / 100 + noise):
                state = "pruned"
                break
        measures = {"reward": 0.3 if bad else 0.9} if state == "complete" else {}
        study.finish(trial, state, measures, 0.0)  # type: ignore[arg-type]
        if bad:
            got.append(step)
    return got


@pytest.mark.parametrize("pruner", ["median", "hyperband", "wilcoxon"])
def test_pruning_saves_steps_of_what_is_behind(tmp_path: Path, pruner: Any) -> None:
    got = steps_of_bad_trials(str(tmp_path / "journal"), pruner=pruner)
    assert min(got) >= 3  # two steps of warm-up
    assert sum(got) < 6 * 10


def test_without_a_pruner_every_trial_gets_its_steps(tmp_path: Path) -> None:
    assert steps_of_bad_trials(str(tmp_path / "journal")) == [10] * 6
