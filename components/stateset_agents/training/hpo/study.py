"""A study in its storage: what it is of, who gets which trial, and what has come of them.

Owns the translation between our words and Optuna's. It does not know what a trial does. Any number
of processes may work on one study. A value is drawn from random numbers of its own, derived from
(seed, trial, parameter), so a study that was killed and started again comes to the same trials.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stateset_agents.core.seeds import derive_seed
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.hpo import claims
from stateset_agents.training.hpo.config import Direction, PrunerName, SamplerName
from stateset_agents.training.hpo.spaces import Parameter, SearchSpace
from stateset_agents.training.hpo.storage import open_storage
from stateset_agents.training.hpo.summary import TrialRecord, TrialState

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

# What a trial and its study carry beside Optuna's own.
MEASURES, REASON, SECONDS, DEFINITION = "measures", "reason", "seconds", "definition"
WILCOXON_THRESHOLD = 0.1
MEDIAN_STARTUP_TRIALS = 5
SAMPLER_SEED_LIMIT = 2**32  # numpy's


@dataclass(frozen=True)
class StudyPlan:
    """What a study is of.

    Attributes:
        name: of the study, one a storage.
        aims: measure to direction.
        space: what is searched.
        n_trials: how many trials are handed out in all; None: those that were queued.
        definition: digests of what else decides its trials; a study goes on only with the same.
        seed: of the choice of parameters.
        sampler: how they are chosen.
        startup_trials: ended trials before a sampler that learns does.
        pruner: which trials end early; None: none does.
        pruning_warmup_steps: optimizer batches before a trial may.
        total_steps: optimizer batches of a trial of the base configuration.
    """

    name: str
    aims: Mapping[str, Direction]
    space: SearchSpace
    n_trials: int | None
    definition: Mapping[str, str]
    seed: int = 0
    sampler: SamplerName = "tpe"
    pruner: PrunerName | None = None
    pruning_warmup_steps: int = 2
    total_steps: int = 1
    startup_trials: int = 10


class StoredStudy:
    """A study that is open; make one in every process."""

    def __init__(self, address: str, plan: StudyPlan) -> None:
        """Open the study, or begin it.

        Raises:
            ConfigurationError: the storage cannot be opened, or a study of this name is of
                something else.
        """
        import optuna

        self.address = address
        self.plan = plan
        storage = open_storage(address)
        definition = _definition(plan)
        with claims.handing_out(storage, address, plan.name), _without_notices():
            self.study: Study = optuna.create_study(
                study_name=plan.name,
                storage=storage,
                directions=list(plan.aims.values()),
                load_if_exists=True,
                pruner=_make_pruner(plan),
            )
            found = self.study.user_attrs.get(DEFINITION)
            if found is None:
                self.study.set_user_attr(DEFINITION, definition)
        if found is not None and found != definition:
            raise ConfigurationError(_another_study(plan.name, address, found, definition))

    @contextlib.contextmanager
    def handing_out(self) -> Iterator[None]:
        """Nobody else takes or queues a trial meanwhile."""
        with claims.handing_out(self.study._storage, self.address, self.plan.name):
            yield

    def note(self, name: str, value: str) -> None:
        """Write down something of the whole study, for processes that join it."""
        self.study.set_user_attr(name, value)

    def noted(self, name: str) -> str | None:
        """What `note` wrote; None where nothing was."""
        found = self.study.user_attrs.get(name)
        return None if found is None else str(found)

    def queue(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Have the points tried next, unless they were queued or tried before."""
        with self.handing_out():
            for point in points:
                self.study.enqueue_trial(dict(point), skip_if_exists=True)

    def take(self) -> Trial | None:
        """A trial to run: one whose worker died, else the next one; None when all are handed out.
        The trial is this process's until `finish`.
        """
        import optuna
        from optuna.trial import TrialState as State

        with self.handing_out():
            known = self.study.get_trials(deepcopy=False)
            orphans = [
                one for one in known if one.state is State.RUNNING and not claims.is_owned(one)
            ]
            while orphans and claims.attempts(orphans[0]) >= claims.MOST_ATTEMPTS:
                # its parameters end every process that tries them: out of memory, most often
                fatal = optuna.Trial(self.study, orphans.pop(0)._trial_id)
                self.finish(fatal, "failed", {}, 0.0, claims.DEADLY)
            if orphans:
                trial = optuna.Trial(self.study, orphans[0]._trial_id)
            elif self._has_more(known):
                trial = self.study.ask()
            else:
                return None
            for name, parameter in self.plan.space.items():
                seed = derive_seed(self.plan.seed, trial.number, name) % SAMPLER_SEED_LIMIT
                self.study.sampler = _make_sampler(self.plan, seed)
                trial._suggest(name, _distribution(parameter))
            claims.take(trial)
            return trial

    def trial(self, number: int) -> Trial:
        """A trial that was taken before, in this process or in the one that handed it over."""
        import optuna

        return optuna.Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)

    def _has_more(self, known: Sequence[FrozenTrial]) -> bool:
        waiting = sum(one.state.name == "WAITING" for one in known)
        if self.plan.n_trials is None:
            return waiting > 0
        return len(known) - waiting < self.plan.n_trials

    def report(self, trial: Trial, step: int, value: float) -> bool:
        """Keep an intermediate value of optimizer batch `step` (from 1); True when the trial is to
        end here. A trial that is run again has its values already.
        """
        if step - 1 not in trial._cached_frozen_trial.intermediate_values:
            trial.report(value, step - 1)
        return self.plan.pruner is not None and trial.should_prune()

    def finish(
        self,
        trial: Trial,
        state: TrialState,
        measures: Mapping[str, float],
        seconds: float,
        reason: str = "",
    ) -> TrialRecord:
        """Write down how the trial ended."""
        from optuna.trial import TrialState as State

        trial.set_user_attr(MEASURES, dict(measures))
        trial.set_user_attr(SECONDS, seconds)
        if reason:
            trial.set_user_attr(REASON, reason)
        if state == "complete":
            self.study.tell(trial, [measures[name] for name in self.plan.aims])
        else:
            ended = State.PRUNED if state == "pruned" else State.FAIL
            self.study.tell(trial, state=ended)
        return self._record(self.study.get_trials(deepcopy=False)[trial.number])

    def records(self) -> list[TrialRecord]:
        """Every trial that has ended, by number."""
        return [
            self._record(one)
            for one in self.study.get_trials(deepcopy=False)
            if one.state.is_finished()
        ]

    def is_running(self) -> bool:
        """Whether somebody, a process that died included, has a trial that is not finished."""
        from optuna.trial import TrialState as State

        return bool(self.study.get_trials(deepcopy=False, states=(State.RUNNING,)))

    def _record(self, trial: FrozenTrial) -> TrialRecord:
        states: dict[str, TrialState] = {"COMPLETE": "complete", "PRUNED": "pruned"}
        complete = trial.state.name == "COMPLETE"
        return TrialRecord(
            number=trial.number,
            params=dict(trial.params),
            values=dict(zip(self.plan.aims, trial.values, strict=True)) if complete else None,
            state=states.get(trial.state.name, "failed"),
            duration_seconds=float(trial.user_attrs.get(SECONDS, 0.0)),
            measures=dict(trial.user_attrs.get(MEASURES, {})),
            steps={step + 1: value for step, value in trial.intermediate_values.items()},
            reason=str(trial.user_attrs.get(REASON, "")),
        )


@contextlib.contextmanager
def _without_notices() -> Iterator[None]:
    """Every process and phase opens the study; that it exists already is no news each time."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def require_study(address: str, study_name: str) -> None:
    """Refuse to join what nobody has begun.

    Raises:
        ConfigurationError: the storage cannot be opened, or has no study of this name.
    """
    import optuna

    names = optuna.get_all_study_names(open_storage(address))
    if study_name not in names:
        raise ConfigurationError(
            f"study storage {address.split('@')[-1]} has no study {study_name!r} to join; it has "
            f"{', '.join(names) or 'none'}. Begin the search first, with the same settings and data"
        )


def best_points(address: str, study_name: str, count: int) -> list[dict[str, Any]]:
    """The parameters of another study's best trials, the best first.

    Raises:
        ConfigurationError: the storage has no such study, or no trial of it was completed.
    """
    import optuna
    from optuna.trial import TrialState as State

    storage = open_storage(address)
    names = optuna.get_all_study_names(storage)
    if study_name not in names:
        raise ConfigurationError(
            f"start_from_study: {address} has no study {study_name!r}; it has "
            f"{', '.join(names) or 'none'}"
        )
    study = optuna.load_study(study_name=study_name, storage=storage)
    done = study.get_trials(deepcopy=False, states=(State.COMPLETE,))
    if not done:
        raise ConfigurationError(f"start_from_study: no trial of {study_name!r} was completed")
    sign = -1 if study.directions[0].name == "MAXIMIZE" else 1
    order = sorted(done, key=lambda trial: sign * trial.values[0])
    return [dict(trial.params) for trial in order[:count]]


def _definition(plan: StudyPlan) -> dict[str, Any]:
    return {
        "search space": {name: axis.to_json() for name, axis in plan.space.items()},
        "objectives": dict(plan.aims),
        "search": f"seed {plan.seed}, sampler {_sampler_of(plan)}, pruner {plan.pruner}",
        **plan.definition,
    }


def _sampler_of(plan: StudyPlan) -> str:
    return f"tpe after {plan.startup_trials}" if plan.sampler == "tpe" else plan.sampler


def _another_study(
    name: str, address: str, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> str:
    parts = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    lines = [f"{key}: it has {found.get(key)}, this search {wanted.get(key)}" for key in parts]
    shown = address.split("@")[-1]
    return (
        f"study {name!r} in {shown} is another search: {'; '.join(lines)}. Give this one another "
        "study_name, or set what it had"
    )


def _distribution(parameter: Parameter) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if parameter.type == "categorical":
        return CategoricalDistribution(parameter.choices)
    if parameter.type == "int":
        return IntDistribution(int(parameter.low), int(parameter.high))
    return FloatDistribution(parameter.low, parameter.high, log=parameter.type == "loguniform")


def _make_sampler(plan: StudyPlan, seed: int) -> BaseSampler:
    from optuna.samplers import RandomSampler, TPESampler

    if plan.sampler == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=plan.startup_trials)


def _make_pruner(plan: StudyPlan) -> BasePruner:
    from optuna.exceptions import ExperimentalWarning
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, WilcoxonPruner

    warmup = plan.pruning_warmup_steps
    if plan.pruner is None:
        return NopPruner()
    if plan.pruner == "median":
        return MedianPruner(n_startup_trials=MEDIAN_STARTUP_TRIALS, n_warmup_steps=warmup)
    if plan.pruner == "hyperband":
        return HyperbandPruner(min_resource=warmup, max_resource=max(warmup, plan.total_steps))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return WilcoxonPruner(p_threshold=WILCOXON_THRESHOLD, n_startup_steps=warmup)
