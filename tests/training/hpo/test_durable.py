"""A search that is killed at any moment and started again comes to what it would have come to."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path

import pytest

from stateset_agents.training.hpo import HPOSummary
from tests.training.hpo.made import make_base, search

MULTIPROCESSING = multiprocessing.get_context("forkserver")


def _search(folder: Path, storage: Path, n_workers: int = 1) -> HPOSummary:
    return search(
        folder,
        storage,
        study_name="s",
        n_trials=5,
        confirm_top=1,
        confirm_seeds=1,
        n_workers=n_workers,
        sampler="tpe" if n_workers == 1 else "random",
        base_config=make_base(num_episodes=6),
    )


def _child(folder: Path, storage: Path, n_workers: int) -> None:
    _search(folder, storage, n_workers)


def _comes_to(summary: HPOSummary) -> object:
    trials = [(one.number, one.params, one.values, one.steps) for one in summary.trials]
    return trials, summary.best_params, summary.best_reward, summary.confirmations


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("n_workers", [1, 2])
def test_killed_at_random_moments_it_loses_nothing_and_repeats_nothing(
    tiny_model_dir: Path, tmp_path: Path, n_workers: int
) -> None:
    # with workers, what is tried does not depend on the order in which trials end: sampled blindly
    expected = _comes_to(_search(tiny_model_dir, tmp_path / "whole", n_workers))
    MULTIPROCESSING.set_forkserver_preload(["tests.training.hpo.made"])
    moments = random.Random(n_workers)
    storage = tmp_path / "cut"
    for _ in range(10):
        process = MULTIPROCESSING.Process(target=_child, args=(tiny_model_dir, storage, n_workers))
        process.start()
        process.join(timeout=moments.uniform(0.5, 8.0))
        process.kill()
        process.join()
    summary = _search(tiny_model_dir, storage, n_workers)
    assert [one.number for one in summary.trials] == list(range(5))
    assert {one.state for one in summary.trials} == {"complete"}
    assert _comes_to(summary) == expected


@pytest.mark.slow
def test_workers_come_to_the_trials_of_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = {"n_trials": 3, "sampler": "random"}
    alone = search(tiny_model_dir, tmp_path / "alone", **settings)
    beside = search(tiny_model_dir, tmp_path / "beside", n_workers=2, **settings)
    assert [(one.params, one.values) for one in beside.trials] == [
        (one.params, one.values) for one in alone.trials
    ]
