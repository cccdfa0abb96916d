"""The settings of a search: `HPOConfig` in the Python API, the section `tune` of `params.yaml`.

Owns what a search may be told and the checks that need no training. Imports neither torch nor
optuna.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from stateset_agents.settings import Settings
from stateset_agents.training.hpo.spaces import SearchSpace, parse_space

Backend = Literal["optuna", "ray_tune", "wandb"]
Direction = Literal["maximize", "minimize"]
PrunerName = Literal["median", "hyperband", "wilcoxon"]
SamplerName = Literal["tpe", "random"]

REWARD = "reward"
MEASURES = (REWARD, "answer_tokens", "parts/NAME")


class SearchSettings(Settings):
    """How parameters are searched for, whoever carries the trials out."""

    search_space: str | dict[str, dict[str, Any]] = "grpo"
    """A space of `get_search_space`, or a mapping of setting to `{type: uniform, low: 0, high: 1}`
    (or `loguniform`, or `int`), or to `{type: categorical, choices: [4, 8]}`."""
    n_trials: int = Field(default=50, ge=1)
    """Trials of the search, those that were pruned or failed included."""
    optimization_direction: Direction = "maximize"
    """Of the reward, where `objectives` is None."""
    objectives: dict[str, Direction] | None = None
    """Several aims at once, by measure: `{reward: maximize, answer_tokens: minimize}`. A measure is
    `reward`, `answer_tokens` (the mean of an answer) or `parts/NAME` (a part of the reward). The
    first one ranks where one order is needed. None: the reward alone."""
    seed: int = Field(default=0, ge=0)
    """Of the choice of parameters and of the validation. Every trial trains with the base
    configuration's seed, so that trials differ by their parameters alone."""
    sampler: SamplerName = "tpe"
    """How parameters are chosen: from what earlier trials taught (`tpe`, Bergstra et al. 2011), or
    blindly (`random`)."""
    startup_trials: int = Field(default=10, ge=1)
    """So many ended trials before `tpe` learns from them; until then it chooses blindly."""

    pruning: bool | None = None
    """End a trial early whose training rewards fall behind those of earlier ones. None: yes, with
    several objectives no, because pruning needs one order."""
    pruner: PrunerName = "median"
    """`median`: below the median of earlier trials at the same step; `hyperband`: successive
    halving at several budgets (Li et al. 2018); `wilcoxon`: significantly (p < 0.1) below the best
    trial on the steps of both, which visit the same scenarios."""
    pruning_warmup_steps: int = Field(default=2, ge=1)
    """Optimizer batches of a trial before it may be pruned."""

    time_limit_seconds: float | None = Field(default=None, gt=0)
    """After so long no further trial begins; what runs is finished. None: no limit."""
    trial_time_limit_seconds: float | None = Field(default=None, gt=0)
    """A trial whose training takes longer is ended, and counts as failed. None: no limit."""
    episodes_per_trial: int | None = Field(default=None, ge=1)
    """`num_episodes` of a trial. None: the base configuration's."""

    validation_samples: int = Field(default=2, ge=1)
    """Conversations per validation scenario. Every trial gets the same seeds."""
    confirm_top: int = Field(default=3, ge=0)
    """So many of the best configurations are trained again with fresh seeds, beside the base
    configuration, before one is named best. 0: the search's own values decide, luck included."""
    confirm_seeds: int = Field(default=2, ge=1)
    """Fresh seeds for each of them."""

    n_workers: int = Field(default=1, ge=1)
    """Trials side by side, in processes of this machine. 1: in this process."""
    storage: str = ".stateset/hpo.journal"
    """Where studies are kept: a file of this machine, or `postgresql://USER@HOST:PORT/DATABASE`."""
    study_name: str | None = Field(default=None, min_length=1)
    """A study that is there goes on, if it is the same search. None: a new one."""
    start_with: list[dict[str, Any]] = Field(default_factory=list)
    """Points of the space that are tried first."""
    start_from_study: str | None = None
    """A study in the same storage whose best trials are tried first, as far as they lie in the
    space."""

    @field_validator("search_space")
    @classmethod
    def _is_a_space(cls, value: Any) -> Any:
        parse_space(value)
        return value

    @model_validator(mode="after")
    def _check_search(self) -> Self:
        problems = []
        for name in self.objectives or {}:
            if name not in (REWARD, "answer_tokens") and not name.startswith("parts/"):
                problems.append(f"objectives: {name} is not measured; allowed: {MEASURES}")
        if self.objectives is not None and not self.objectives:
            problems.append("objectives={} aims at nothing; name a measure, or leave it out")
        if self.objectives is not None and "optimization_direction" in self.model_fields_set:
            problems.append(
                "optimization_direction is read where objectives is None; each objective has its "
                "own: leave one of the two out"
            )
        if self.pruning and len(self.objectives or {}) > 1:
            problems.append(
                "pruning=True cannot work with several objectives, which have no one order: leave "
                "it out"
            )
        space = self.space
        for number, point in enumerate(self.start_with):
            problems += _problems_of_point(f"start_with[{number}]", point, space)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def space(self) -> SearchSpace:
        """The space, parsed."""
        return parse_space(self.search_space)

    @property
    def aims(self) -> dict[str, Direction]:
        """Measure to direction; one entry unless there are several objectives."""
        return self.objectives or {REWARD: self.optimization_direction}

    @property
    def prunes(self) -> bool:
        """Whether trials may end early."""
        return len(self.aims) == 1 if self.pruning is None else self.pruning


class HPOConfig(SearchSettings):
    """A search by `quick_hpo`."""

    backend: Backend = "optuna"
    """What carries the trials out: `optuna`, in this process or in workers of it; `ray_tune`,
    workers of Ray's (extra `ray`); `wandb`, as `optuna`, each trial a run of Weights & Biases as
    well (extra `wandb`)."""
    validation_share: float = Field(default=0.25, gt=0, lt=1)
    """Share of the intents (of the scenarios, where they have none) that trials are scored on and
    not trained on; not read where a validation part is given."""


def _problems_of_point(where: str, point: dict[str, Any], space: SearchSpace) -> list[str]:
    problems = [
        f"{where}: {name} is not in the search space, which has {', '.join(space)}"
        for name in point
        if name not in space
    ]
    return problems + [
        f"{where}: {name}={value!r} is not in {space[name].to_json()}"
        for name, value in point.items()
        if name in space and not space[name].contains(value)
    ]


def points_within(points: list[dict[str, Any]], space: SearchSpace) -> list[dict[str, Any]]:
    """What of the points lies in the space; points of which nothing does are dropped."""
    kept = [
        {
            name: value
            for name, value in point.items()
            if name in space and space[name].contains(value)
        }
        for point in points
    ]
    return [point for point in kept if point]


class TuneConfig(SearchSettings):
    """The step `tune`. Trials are scored on the validation part of the data; the base
    configuration is `agent` and `train`.
    """

    n_trials: int = Field(default=0, ge=0)
    """Trials of the search, those that were pruned or failed included. 0: no search, and `agent`
    and `train` stay as they are."""
    storage: str = ".stateset/tune.journal"
    """Where studies are kept: a file of this machine, or `postgresql://USER@HOST:PORT/DATABASE`."""
    start_from_champion: bool = False
    """Try what the version in service was trained with first, as far as it lies in the space."""
