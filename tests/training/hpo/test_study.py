"""A study keeps what came of its trials, whoever dies: same numbers and parameters, none twice."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.hpo import claims
from stateset_agents.training.hpo.study import StoredStudy
from tests.training.hpo.studies import SPACE, in_process, make_plan, outcome, value, work


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


def test_a_sampler_that_learns_chooses_otherwise_than_one_that_does_not(tmp_path: Path) -> None:
    found = []
    for sampler in ("tpe", "random"):
        plan = make_plan(sampler, sampler=sampler, n_trials=14)
        work(str(tmp_path / "journal"), plan)
        records = StoredStudy(str(tmp_path / "journal"), plan).records()
        found.append([one.params["temperature"] for one in records])
    assert found[0][:10] == found[1][:10]  # TPE begins blindly
    assert found[0][10:] != found[1][10:]


def test_it_learns_from_the_startup_trials_on(tmp_path: Path) -> None:
    found = []
    for startup in (3, 6):
        plan = make_plan(f"after {startup}", startup_trials=startup, n_trials=6)
        work(str(tmp_path / "journal"), plan)
        records = StoredStudy(str(tmp_path / "journal"), plan).records()
        found.append([one.params["temperature"] for one in records])
    assert found[0][:3] == found[1][:3]
    assert not set(found[0][3:]) & set(found[1][3:])


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


def test_a_trial_in_which_every_process_dies_is_given_up(tmp_path: Path) -> None:
    plan = make_plan(n_trials=1)
    address = str(tmp_path / "journal")
    for _ in range(claims.MOST_ATTEMPTS):
        trial = StoredStudy(address, plan).take()
        assert trial is not None
        assert trial.number == 0
        trial.set_user_attr(claims.OWNER, None)  # as after a kill
    study = StoredStudy(address, plan)
    assert study.take() is None
    (record,) = study.records()
    assert (record.state, record.reason) == ("failed", claims.DEADLY)


@pytest.mark.parametrize(("seconds_ago", "owned"), [(10, True), (1000, False)])
def test_another_machines_worker_is_alive_while_it_gives_signs(
    seconds_ago: float, owned: bool
) -> None:
    owner = {"host": "elsewhere", "pid": 1, "started": "1", "alive_at": time.time() - seconds_ago}
    running = optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING, user_attrs={claims.OWNER: owner}
    )
    assert claims.is_owned(running) is owned


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
