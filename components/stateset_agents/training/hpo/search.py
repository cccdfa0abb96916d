"""A search from beginning to end: trials, the best again with fresh seeds, the summary.

Owns the order of a search and its work in processes. What a trial does is `trial.py`'s, how
parameters are chosen and kept `study.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import pickle
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from stateset_agents.exceptions import (
    ConfigurationError,
    EngineError,
    RolloutError,
    TrainingError,
)
from stateset_agents.training.hpo import claims
from stateset_agents.training.hpo.config import REWARD, SearchSettings, points_within
from stateset_agents.training.hpo.spaces import Parameter, check_space_fits
from stateset_agents.training.hpo.study import StoredStudy, StudyPlan, best_points, require_study
from stateset_agents.training.hpo.summary import (
    BASE,
    Confirmation,
    HPOSummary,
    TrialRecord,
    TrialState,
    ranked,
    summarise,
)
from stateset_agents.training.hpo.trial import TrialRunner, step_measure

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from optuna import Trial

Phase = Literal["search", "again"]
POLL_SECONDS = 0.5
# What an earlier study is asked for.
POINTS_OF_A_STUDY = 3
# The names of the second study's parameters: which configuration, and the how manieth fresh seed.
CANDIDATE, REPEAT = "candidate", "repeat"

# What a configuration can bring about; another error is a defect, and ends the search.
_OF_THE_CONFIGURATION = (
    ConfigurationError,
    EngineError,
    RolloutError,
    TrainingError,
    torch.OutOfMemoryError,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StartedTrial:
    """A trial that begins: which, and with what.

    Attributes:
        phase: `search`, or `again` for a run with a fresh seed.
        number: in its phase.
        params: the configuration's parameters; {} is the base configuration.
        label: for people, such as `trial 3` or `base, seed 2`.
    """

    phase: Phase
    number: int
    params: dict[str, Any]
    label: str


class TrialLog(Protocol):
    """What an observer is told while a trial runs."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """After an optimizer batch."""

    def end(self, record: TrialRecord) -> None:
        """When the trial has ended well, was pruned or failed."""


class Observer(Protocol):
    """Keeps an account of trials, in the process that runs them."""

    def trial(self, started: StartedTrial) -> AbstractContextManager[TrialLog]:
        """The trial's account, open while it runs."""


class _PrunedError(Exception):
    """Ends a trial from inside its training."""


@dataclass(frozen=True)
class Search:
    """What all processes of a search share; it can be pickled if its parts can.

    Attributes:
        settings: of the search.
        runner: what a trial does.
        study_name: of the first phase; the second one's is derived from it.
        points: tried first, in the space.
        definition: digests that tell this search from another, beside the runner's.
        observer: keeps an account of trials.
    """

    settings: SearchSettings
    runner: TrialRunner
    study_name: str
    points: Sequence[Mapping[str, Any]] = ()
    definition: Mapping[str, str] = field(default_factory=dict)
    observer: Observer | None = None

    def open(self, phase: Phase = "search") -> StoredStudy:
        """The study of a phase.

        Raises:
            ConfigurationError: the storage cannot be opened, or the study is another search's.
        """
        return StoredStudy(self.settings.storage, self._plan(phase))

    def _plan(self, phase: Phase) -> StudyPlan:
        settings = self.settings
        definition = {**self.runner.describe(), **self.definition}
        if phase == "again":
            numbers = {
                CANDIDATE: Parameter("int", BASE, 1_000_000),
                REPEAT: Parameter("int", 0, 999),
            }
            return StudyPlan(
                f"{self.study_name}/again", settings.aims, numbers, None, definition, settings.seed
            )
        return StudyPlan(
            self.study_name,
            settings.aims,
            settings.space,
            settings.n_trials,
            definition,
            settings.seed,
            settings.sampler,
            settings.pruner if settings.prunes else None,
            settings.pruning_warmup_steps,
            self.runner.config.total_steps,
            settings.startup_trials,
        )


def make_search(
    settings: SearchSettings,
    runner: TrialRunner,
    *,
    definition: Mapping[str, str] | None = None,
    observer: Observer | None = None,
    points: Sequence[Mapping[str, Any]] = (),
    begin: bool = True,
) -> Search:
    """Check all that can be known before the first trial, and begin the study or find it.

    `points` are tried after `settings.start_with`, as far as they lie in the space. Without
    `begin` the study has to be there, and no point is added to it.

    Raises:
        ConfigurationError: a space that does not fit the base settings, a storage that cannot be
            opened, a study of the same name that is another search.
    """
    for warning in check_space_fits(settings.space, runner.config, runner.agent.config):
        _log.warning("%s", warning)
    if not begin:
        name = settings.study_name or ""
        require_study(settings.storage, name)
        search = Search(settings, runner, name, (), definition or {}, observer)
        search.open()
        return search
    earlier: list[dict[str, Any]] = []
    if settings.start_from_study is not None:
        earlier = best_points(settings.storage, settings.start_from_study, POINTS_OF_A_STUDY)
    name = settings.study_name or f"hpo-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    within = points_within([*earlier, *(dict(point) for point in points)], settings.space)
    search = Search(
        settings, runner, name, [*settings.start_with, *within], definition or {}, observer
    )
    search.open().queue(search.points)
    return search


async def run_search(search: Search, backend: str = "optuna") -> HPOSummary:
    """All trials, the best ones again, and what came of it.

    Raises:
        TrainingError: no trial was completed.
    """
    limit = search.settings.time_limit_seconds
    deadline = None if limit is None else time.monotonic() + limit
    await run_phase(search, "search", deadline)
    if search.settings.confirm_top:
        plan_again(search)
        await run_phase(search, "again", None)
    return read_summary(search, backend)


async def run_phase(search: Search, phase: Phase, deadline: float | None) -> None:
    """Run the trials that are left, in workers if there are to be several."""
    if search.settings.n_workers > 1:
        await _run_workers(search, phase, deadline)
    # with workers: what one that died has left; else everything
    await run_trials(search, phase, deadline, wait=True)


async def run_trials(
    search: Search, phase: Phase, deadline: float | None = None, *, wait: bool
) -> None:
    """Run trials in this process until none is left; with `wait` until those of other processes
    have ended as well, and take up what they leave.
    """
    study = search.open(phase)
    while True:
        late = deadline is not None and time.monotonic() > deadline
        trial = None if late else study.take()
        if trial is not None:
            await run_one(search, phase, study, trial)
        elif late or not (wait and study.is_running()):
            return
        else:
            await asyncio.sleep(POLL_SECONDS)


async def run_one(search: Search, phase: Phase, study: StoredStudy, trial: Trial) -> TrialRecord:
    """Run a trial that this process has taken, and write down how it ended."""
    started, repeat = _started(search, phase, trial)
    aim = next(iter(search.settings.aims))
    one_aim = phase == "search" and len(search.settings.aims) == 1
    state: TrialState = "complete"
    measures: dict[str, float] = {}
    reason = ""
    with claims.keeping(trial, study.address), _observed(search, started) as log:

        def report(step: int, metrics: Mapping[str, float]) -> None:
            if log is not None:
                log.step(step, metrics)
            value = step_measure(metrics, aim)
            if one_aim and value is not None and study.report(trial, step, value):
                raise _PrunedError(f"behind earlier trials at step {step}")

        began = time.perf_counter()
        try:
            measures = await search.runner.run(started.params, repeat=repeat, report=report)
        except _PrunedError as error:
            state, reason = "pruned", str(error)
        except _OF_THE_CONFIGURATION as error:
            state, reason = "failed", f"{type(error).__name__}: {error}"
            _log.warning("%s of study %s failed: %s", started.label, search.study_name, error)
        record = study.finish(trial, state, measures, time.perf_counter() - began, reason)
        if log is not None:
            log.end(record)
    return record


def _started(search: Search, phase: Phase, trial: Trial) -> tuple[StartedTrial, int]:
    """What the trial is, and its repeat: 0 in the search."""
    if phase == "search":
        return StartedTrial(phase, trial.number, trial.params, f"trial {trial.number}"), 0
    candidate, repeat = trial.params[CANDIDATE], trial.params[REPEAT]
    params: dict[str, Any] = {}
    if candidate != BASE:
        known = {one.number: one for one in search.open().records()}
        params = known[candidate].params
    what = "base" if candidate == BASE else f"trial {candidate}"
    label = f"{what} again, seed {repeat}" if repeat else what
    return StartedTrial(phase, trial.number, params, label), repeat


@contextlib.contextmanager
def _observed(search: Search, started: StartedTrial) -> Iterator[TrialLog | None]:
    if search.observer is None:
        yield None
        return
    with search.observer.trial(started) as log:
        yield log


# --- the second phase --------------------------------------------------------------------------


def plan_again(search: Search) -> None:
    """Queue the best configurations and the base for `confirm_seeds` fresh seeds; the base for the
    search's own as well, which the gain in the search is measured from.
    """
    pairs = [(BASE, 0)]
    for number in (BASE, *_candidates(search)):
        pairs += [(number, repeat) for repeat in range(1, search.settings.confirm_seeds + 1)]
    search.open("again").queue([{CANDIDATE: one, REPEAT: repeat} for one, repeat in pairs])


def _candidates(search: Search) -> list[int]:
    records = search.open().records()
    aims = search.settings.aims
    order = ranked(records, aims)
    if len(aims) > 1 and order:
        front = summarise(search.study_name, "", aims, records, (), {}, "").pareto_front
        order = ranked(front, aims)
    return [trial.number for trial in order[: search.settings.confirm_top]]


def read_summary(search: Search, backend: str = "optuna") -> HPOSummary:
    """What the search has come to so far.

    Raises:
        TrainingError: no trial was completed.
    """
    records = search.open().records()
    aims = search.settings.aims
    confirmations: list[Confirmation] = []
    rewards: dict[int, list[float]] = {}
    if search.settings.confirm_top:
        runs = [one for one in search.open("again").records() if one.values is not None]
        searched = {one.number: one.values for one in records}
        for run in runs:
            if run.params[REPEAT] == 0:
                searched[BASE] = run.values
        aim = next(iter(aims))
        for number in (BASE, *_candidates(search)):
            again = [
                run
                for run in runs
                if run.params[CANDIDATE] == number
                and 1 <= run.params[REPEAT] <= search.settings.confirm_seeds
            ]
            value = searched.get(number)
            confirmations.append(
                Confirmation(
                    number,
                    None if value is None else value[aim],
                    tuple((run.values or {})[aim] for run in again),
                )
            )
            rewards[number] = [run.measures[REWARD] for run in again]
    return summarise(
        search.study_name,
        backend,
        aims,
        records,
        confirmations,
        rewards,
        search.runner.validation.description,
    )


# --- workers ------------------------------------------------------------------------------------


async def _run_workers(search: Search, phase: Phase, deadline: float | None) -> None:
    """Processes that take trials until none is left."""
    try:
        pickle.dumps(search)
    except Exception as error:
        raise ConfigurationError(
            f"n_workers={search.settings.n_workers} sends agent, environment and reward function "
            f"to other processes, and they cannot be: {error}. Define their classes in a module "
            "that can be imported, or set n_workers=1"
        ) from error
    context = multiprocessing.get_context("spawn")
    left = None if deadline is None else deadline - time.monotonic()
    workers = [
        context.Process(target=_work, args=(search, phase, left), name=f"hpo-worker-{number}")
        for number in range(search.settings.n_workers)
    ]
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers):
            await asyncio.sleep(POLL_SECONDS)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    broken = [worker for worker in workers if worker.exitcode]
    if broken:
        _log.warning(
            "%d of %d workers of study %s ended with exit codes %s; what they left is done here",
            len(broken),
            len(workers),
            search.study_name,
            [worker.exitcode for worker in broken],
        )


def _work(search: Search, phase: Phase, seconds: float | None) -> None:
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    deadline = None if seconds is None else time.monotonic() + seconds
    asyncio.run(run_trials(search, phase, deadline, wait=False))


def _end_with_parent() -> None:
    """A killed search must not leave workers that go on in its name."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
