"""Trials carried out by Ray Tune: the backend `ray_tune`.

Owns the translation: Ray decides where and when a trial runs, on this machine or on the cluster
that RAY_ADDRESS names. Parameters, pruning and results stay the study's, so settings mean what they
mean without Ray; on a cluster the study's storage has to be one that every machine reaches.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from typing import TYPE_CHECKING, Any

from stateset_agents.exceptions import TrainingError
from stateset_agents.training.hpo.search import Phase, Search, plan_again, read_summary, run_one

if TYPE_CHECKING:
    from stateset_agents.training.hpo.study import StoredStudy
    from stateset_agents.training.hpo.summary import HPOSummary

NUMBER = "number"


async def run_search_with_ray(search: Search) -> HPOSummary:
    """As `search.run_search`; `n_workers` trials run side by side.

    Raises:
        TrainingError: no trial was completed, or a worker of Ray's failed.
    """
    limit = search.settings.time_limit_seconds
    deadline = None if limit is None else time.monotonic() + limit
    await asyncio.to_thread(_run_phase, search, "search", deadline)
    if search.settings.confirm_top:
        plan_again(search)
        await asyncio.to_thread(_run_phase, search, "again", None)
    return read_summary(search, "ray_tune")


def _run_phase(search: Search, phase: Phase, deadline: float | None) -> None:
    import ray
    from ray import tune
    from ray.tune.search import ConcurrencyLimiter

    # relative paths (a model's folder, the storage) are those of the process that searches
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    started_here = not ray.is_initialized()
    if started_here:
        workers = search.settings.n_workers
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory(prefix="hpo-ray-") as folder:
            tuner = tune.Tuner(
                tune.with_parameters(_run_trial, search=search, phase=phase),
                tune_config=tune.TuneConfig(
                    search_alg=ConcurrencyLimiter(
                        _make_searcher(search, phase, deadline), search.settings.n_workers
                    ),
                    num_samples=-1,
                ),
                run_config=tune.RunConfig(storage_path=folder, verbose=0),
            )
            results = tuner.fit()
        if results.errors:
            raise TrainingError(f"a trial failed in Ray's worker: {results.errors[0]}")
    finally:
        if started_here:
            ray.shutdown()


def _make_searcher(search: Search, phase: Phase, deadline: float | None) -> Any:
    from ray.tune.search import Searcher

    class _Numbers(Searcher):
        """Hands Ray the numbers of trials that this process has taken."""

        def __init__(self) -> None:
            super().__init__()
            self._study: StoredStudy | None = None

        def __getstate__(self) -> dict[str, Any]:
            # Ray keeps a copy of the searcher; an open storage has no copies
            return {**self.__dict__, "_study": None}

        def suggest(self, trial_id: str) -> dict[str, int] | str:
            if deadline is not None and time.monotonic() > deadline:
                return str(Searcher.FINISHED)
            self._study = self._study or search.open(phase)
            trial = self._study.take()
            return str(Searcher.FINISHED) if trial is None else {NUMBER: trial.number}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            """The worker has told the study."""

        def save(self, checkpoint_path: str) -> None:
            """The study is durable, this is not."""

        def restore(self, checkpoint_path: str) -> None:
            """As `save`."""

    return _Numbers()


def _run_trial(config: dict[str, int], search: Search, phase: Phase) -> None:
    """In a worker of Ray's."""
    from ray import tune

    study = search.open(phase)
    record = asyncio.run(run_one(search, phase, study, study.trial(config[NUMBER])))
    tune.report({**record.measures, "state": record.state})
