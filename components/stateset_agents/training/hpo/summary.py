"""What a search came to: every trial, the best parameters, and how much of the gain was luck.

Owns these values and how the best is named. It does not know how trials are run or kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from stateset_agents.exceptions import TrainingError
from stateset_agents.training.hpo.config import REWARD, Direction

TrialState = Literal["complete", "pruned", "failed"]

BASE = -1
"""In place of a trial's number: the base configuration."""


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial that has ended.

    Attributes:
        number: counted from 0 in the order in which trials began.
        params: what was searched over, by name.
        values: the objectives' measures on the validation part; None unless `state` is complete.
        state: `complete`, `pruned`, or `failed`.
        duration_seconds: from its beginning (the last one, if its process died) to its end.
        measures: all that was measured on the validation part.
        steps: the training measure that pruning looks at, by optimizer batch from 1.
        reason: why it failed, or was pruned; empty for a complete one.
    """

    number: int
    params: dict[str, Any]
    values: dict[str, float] | None
    state: TrialState
    duration_seconds: float
    measures: dict[str, float] = field(default_factory=dict)
    steps: dict[int, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """One configuration, run again.

    Attributes:
        number: of the trial; `BASE` for the base configuration.
        searched: the first objective's value with the search's own seed; None if that failed.
        again: its values with fresh seeds, those that failed left out.
    """

    number: int
    searched: float | None
    again: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Over the fresh seeds; None where every run failed."""
        return fmean(self.again) if self.again else None


@dataclass(frozen=True, slots=True)
class HPOSummary:
    """The result of a search.

    Attributes:
        study_name: under which it goes on or is looked at.
        backend: what carried it out.
        objectives: measure to direction; the first one ranks.
        best_trial: the trial that `best_params` are of.
        best_reward: its reward on the validation part: the mean over fresh seeds where it was
            confirmed, else the search's own value, which is that of the luckiest.
        trials: all that have ended, by number.
        confirmations: the configurations that were run again; empty with `confirm_top=0`.
        validation: what trials were scored on, in words.
    """

    study_name: str
    backend: str
    objectives: dict[str, Direction]
    best_trial: TrialRecord
    best_reward: float
    trials: tuple[TrialRecord, ...]
    confirmations: tuple[Confirmation, ...]
    validation: str

    @property
    def best_params(self) -> dict[str, Any]:
        """The best configuration's parameters, by name; `with_parameters` puts them into one."""
        return dict(self.best_trial.params)

    @property
    def pareto_front(self) -> list[TrialRecord]:
        """Complete trials that no other one beats in one objective and equals in the rest."""
        done = [trial for trial in self.trials if trial.state == "complete"]
        return [one for one in done if not any(self._beats(other, one) for other in done)]

    @property
    def gain_in_search(self) -> float | None:
        """How much better than the base configuration the best trial was in the search, in the
        first objective, positive is better; None without confirmation.
        """
        pair = self._base_and_best()
        return None if pair is None else self._gain(pair[0].searched, pair[1].searched)

    @property
    def gain_again(self) -> float | None:
        """The same, with fresh seeds for both: what is left of the gain."""
        pair = self._base_and_best()
        return None if pair is None else self._gain(pair[0].mean, pair[1].mean)

    @property
    def luck(self) -> float | None:
        """The part of the gain in the search that fresh seeds did not bear out."""
        if self.gain_in_search is None or self.gain_again is None:
            return None
        return self.gain_in_search - self.gain_again

    @property
    def beats_base(self) -> bool | None:
        """Whether the best is better than the base configuration with fresh seeds; None where that
        was not tried.
        """
        return None if self.gain_again is None else self.gain_again > 0

    def _base_and_best(self) -> tuple[Confirmation, Confirmation] | None:
        known = {one.number: one for one in self.confirmations}
        if BASE not in known or self.best_trial.number not in known:
            return None
        return known[BASE], known[self.best_trial.number]

    def _gain(self, base: float | None, best: float | None) -> float | None:
        if base is None or best is None:
            return None
        return signed(best - base, next(iter(self.objectives.values())))

    def _beats(self, one: TrialRecord, other: TrialRecord) -> bool:
        assert one.values is not None  # complete trials have values
        assert other.values is not None
        differences = [
            signed(one.values[name] - other.values[name], direction)
            for name, direction in self.objectives.items()
        ]
        return min(differences) >= 0 and max(differences) > 0


def signed(difference: float, direction: Direction) -> float:
    """Positive where it is for the better."""
    return difference if direction == "maximize" else -difference


def ranked(trials: Sequence[TrialRecord], aims: Mapping[str, Direction]) -> list[TrialRecord]:
    """Complete trials, the best of the first objective first, earlier ones first among equals."""
    name, direction = next(iter(aims.items()))
    done = [trial for trial in trials if trial.values is not None]
    return sorted(done, key=lambda trial: -signed((trial.values or {})[name], direction))


def summarise(
    study_name: str,
    backend: str,
    aims: Mapping[str, Direction],
    trials: Sequence[TrialRecord],
    confirmations: Sequence[Confirmation],
    again_rewards: Mapping[int, Sequence[float]],
    validation: str,
) -> HPOSummary:
    """Name the best: by the mean over fresh seeds among those that were run again, else by the
    search's values.

    `again_rewards` are the rewards of the runs with fresh seeds, by trial number.

    Raises:
        TrainingError: no trial was completed.
    """
    order = ranked(trials, aims)
    if not order:
        reasons = sorted({trial.reason for trial in trials if trial.reason})
        raise TrainingError(
            f"study {study_name!r}: none of {len(trials)} trials was completed: "
            f"{'; '.join(reasons) or 'none began within the time limit'}"
        )
    direction = next(iter(aims.values()))
    means = {one.number: one.mean for one in confirmations if one.number != BASE}
    confirmed = [trial for trial in order if means.get(trial.number) is not None]
    best = order[0]
    if confirmed:
        best = max(confirmed, key=lambda trial: signed(means[trial.number] or 0.0, direction))
    rewards = again_rewards.get(best.number) or [best.measures[REWARD]]
    return HPOSummary(
        study_name=study_name,
        backend=backend,
        objectives=dict(aims),
        best_trial=best,
        best_reward=fmean(rewards),
        trials=tuple(sorted(trials, key=lambda trial: trial.number)),
        confirmations=tuple(confirmations),
        validation=validation,
    )
