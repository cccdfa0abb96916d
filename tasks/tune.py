"""Step: search for the parameters that the policy is trained with, if params.yaml asks for trials.

Reads the sections `tune`, `agent`, `rewards` and `train`, what `train_policy` reads, and
data/validated/validation.jsonl, which trials are scored on: whole intents that are neither trained
on nor held out. Writes data/tuned.yaml (what `train_policy` and the steps after it lay over
params.yaml) and data/reports/tune (summary.json, report.html). A search that was cut off goes on
from its study if nothing that decides it has changed. With 0 trials it writes that nothing was
searched for.
"""

from __future__ import annotations

import ast
import asyncio
import json
import logging
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from stateset_agents.exceptions import PipelineError
from stateset_agents.run_config import RunConfig
from tasks import entry, paths
from tasks.folders import in_place
from tasks.tuned import write_tuned

if TYPE_CHECKING:
    from stateset_agents.tracking.config import TrackingConfig
    from stateset_agents.tracking.mlflow_run import TrackedRun
    from stateset_agents.training.hpo.search import Search
    from stateset_agents.training.hpo.summary import HPOSummary

_log = logging.getLogger(__name__)

# What a study may go on with others of.
MAY_CHANGE = {
    *("n_trials", "n_workers", "storage", "time_limit_seconds", "confirm_top", "confirm_seeds"),
    *("start_with", "start_from_study", "start_from_champion"),
}

# Under which a study says what its own MLflow run is, to workers elsewhere.
MLFLOW_RUN = "mlflow_run"

VALIDATION = paths.VALIDATED / "validation.jsonl"


def run(config: RunConfig) -> None:
    """Search, or write that nothing was searched for."""
    if config.tune.n_trials == 0:
        with in_place(paths.TUNE_REPORT) as folder:
            text = json.dumps({"trials": [], "why": "tune.n_trials is 0"}, indent=2)
            (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
        write_tuned({}, {}, "tune.n_trials is 0")
        return
    _search(config)


def _search(config: RunConfig) -> None:
    # imported here, so that 0 trials cost nothing
    from stateset_agents.tracking.lineage import collect_lineage
    from stateset_agents.tracking.mlflow_run import RUN_LINK, read_link, start_run
    from stateset_agents.training.hpo.search import run_search

    search = make_search_of(config)
    link = paths.STUDIES / search.study_name / RUN_LINK
    lineage = {
        "scenarios": paths.VALIDATED / "train.jsonl",
        "validation": VALIDATION,
        "base_model": paths.BASE_MODEL,
    }
    with start_run(
        config.tracking,
        "tune",
        {**collect_lineage(lineage), "study": search.study_name},
        params={name: getattr(config, name).model_dump() for name in ("tune", "train", "agent")},
        resume_run_id=read_link(link),
    ) as tracked:
        tracked.write_link(link)
        search.open().note(MLFLOW_RUN, tracked.run_id)
        summary = asyncio.run(run_search(_observed(search, config, tracked)))
        _write(search, summary, tracked)


def make_search_of(config: RunConfig, *, begin: bool = True) -> Search:
    """The search that params.yaml asks for, with its study begun or found; without `begin` it has
    to be there.

    Raises:
        PipelineError: an input is missing.
        ConfigurationError: what `hpo.search.make_search` refuses.
    """
    from stateset_agents.data.readers import read_scenarios
    from stateset_agents.data.scenario_set import make_environment
    from stateset_agents.tracking.lineage import fingerprint
    from stateset_agents.training.checkpoint import digest
    from stateset_agents.training.hpo.search import make_search
    from stateset_agents.training.hpo.trial import TrialRunner
    from stateset_agents.training.hpo.validation import given_validation
    from tasks import train_policy

    if not VALIDATION.is_file():
        raise PipelineError(f"{VALIDATION} is missing; run the step validate_scenarios")
    settings = config.tune
    if settings.episodes_per_trial is not None:
        config = config.model_copy(deep=True)
        config.train.num_episodes = settings.episodes_per_trial
    train_policy.check_inputs(config)
    trained = train_policy.trainer_of(config)
    runner = TrialRunner(
        trained.agent,
        trained.environment,
        trained.reward_function,
        given_validation(
            trained.environment,
            make_environment(read_scenarios(VALIDATION)),
            settings.validation_samples,
        ),
        trained.config,
        trained.demonstrations,
        settings.trial_time_limit_seconds,
        settings.seed,
    )
    definition = {
        "rewards": digest(config.rewards.model_dump()),
        "base model": fingerprint(paths.BASE_MODEL),
        "reward model": fingerprint(paths.REWARD_MODEL) if paths.REWARD_MODEL.exists() else "none",
    }
    if settings.study_name is None:
        # a search of other settings or data is another study; the same one goes on
        decisive = {**runner.describe(), **definition, "space": settings.search_space}
        asked = settings.model_dump(exclude=MAY_CHANGE)
        name = f"tune-{digest([decisive, asked])}"
        settings = settings.model_copy(update={"study_name": name})
    wants_champion = begin and settings.start_from_champion
    points = points_of_champion(config.tracking) if wants_champion else []
    return make_search(settings, runner, definition=definition, points=points, begin=begin)


def points_of_champion(tracking: TrackingConfig) -> list[dict[str, Any]]:
    """What the version in service was trained with; nothing where none is."""
    from stateset_agents.tracking.registry import (
        champion_address,
        champion_version,
        describe_lineage,
    )

    if champion_version(tracking) is None:
        return []
    run = describe_lineage(tracking, champion_address(tracking))["runs"].get("train", {})
    # by section and name, as Python writes values: train.learning_rate is "5e-05"
    point = {
        name.partition(".")[2]: _value(text)
        for name, text in run.get("params", {}).items()
        if name.startswith(("train.", "agent."))
    }
    left, right = point.get("clip_range_left"), point.get("clip_range_right")
    return [{**point, "clip_range": left} if left == right else point]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _observed(search: Search, config: RunConfig, tracked: TrackedRun) -> Search:
    from dataclasses import replace

    from tasks.tune_observer import TrialsOnRecord

    folder = paths.STUDIES / search.study_name
    return replace(search, observer=TrialsOnRecord(config.tracking, tracked.run_id, folder))


def _write(search: Search, summary: HPOSummary, tracked: TrackedRun) -> None:
    from stateset_agents.tracking.mlflow_run import RUN_LINK
    from stateset_agents.training.hpo.report import render_report, verdict
    from stateset_agents.training.hpo.spaces import split_parameters

    storage = search.settings.storage.split("@")[-1]
    told = verdict(summary)
    with in_place(paths.TUNE_REPORT) as folder:
        page = render_report(
            summary,
            search.open().study,
            storage=storage,
            created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
        (folder / "report.html").write_text(page, encoding="utf-8")
        text = json.dumps({**asdict(summary), "why": told, "storage": storage}, indent=2)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    tracked.log_artifact(paths.TUNE_REPORT, "tune_report")
    figures = {
        "best_reward": summary.best_reward,
        "gain_in_search": summary.gain_in_search,
        "gain_again": summary.gain_again,
        "luck": summary.luck,
    }
    tracked.log_metrics({name: value for name, value in figures.items() if value is not None})
    tracked.write_link(paths.TUNE_REPORT / RUN_LINK)
    agent, train = split_parameters(summary.best_params)
    if summary.beats_base is False:
        agent, train = {}, {}
    write_tuned(agent, train, told)
    _log.info("%s", told)


if __name__ == "__main__":
    entry.main(run)
