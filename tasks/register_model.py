"""Step: register the trained policy as a new version, with where it came from and how it did.

Reads data/policy, data/base_model (an adapter is merged with it) and the evaluation's metrics;
writes data/registration.json: {model_name, version, run_id, experiment_id, run_url, model_uri,
weights_sha256, evaluation_sha256}. A policy that was registered before is that version again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stateset_agents.exceptions import PipelineError
from stateset_agents.run_config import RunConfig
from stateset_agents.tracking.lineage import collect_lineage, fingerprint
from stateset_agents.tracking.merging import is_adapter
from stateset_agents.tracking.mlflow_run import (
    RUN_LINK,
    TrackedRun,
    find_run,
    read_link,
    run_tags,
    start_run,
)
from stateset_agents.tracking.registry import (
    MADE_OF,
    RegisteredVersion,
    find_made_of,
    made_of,
    register_version,
    renew_version,
)
from tasks import entry, paths
from tasks.folders import naming
from tasks.tuned import with_tuned

_LOG = logging.getLogger("tasks.register_model")  # also when it runs as __main__

FIGURES = paths.EVALUATION_REPORT / "metrics.json"

_REPORTS = {
    "train": paths.POLICY_REPORT,
    "evaluate": paths.EVALUATION_REPORT,
    "train_reward_model": paths.REWARD_MODEL_REPORT,
}


def run(config: RunConfig) -> None:
    """Register; data/registration.json appears when the version is whole."""
    config = with_tuned(config)
    figures = read_figures()
    origins = collect_lineage({"policy": paths.POLICY})
    policy = origins.get("data.policy.sha256")
    if policy is None or figures.get("policy.sha256") != policy:
        raise PipelineError(
            f"{FIGURES} is not the evaluation of {paths.POLICY}, which was trained again since: "
            "run the step evaluate_policy first"
        )
    base_model = paths.BASE_MODEL if is_adapter(paths.POLICY) else None
    generation = config.agent.model_dump(mode="json")
    digest = made_of(policy, base_model, generation)
    tags = _tags(config, figures, origins) | {MADE_OF: digest}
    description = config.register.description or _describe(figures)
    known = find_made_of(config.tracking, digest)
    tracked = find_run(config.tracking, known.run_id) if known else None
    if known and tracked:  # the step ran again, or its data came back
        version = renew_version(config.tracking, known, tags, description)
        _LOG.info("version %s has these weights already", version.version)
    else:
        with start_run(config.tracking, "register_model", tags) as tracked:
            _log_evaluation(tracked, figures)
            version = register_version(
                config.tracking,
                tracked,
                paths.POLICY,
                base_model=base_model,
                generation=generation,
                tags=tags,
                description=description,
            )
    write_result(paths.REGISTRATION, _registration(version, tracked))


def _log_evaluation(tracked: TrackedRun, figures: Mapping[str, Any]) -> None:
    tracked.log_metrics({k: v for k, v in figures.items() if isinstance(v, (int, float))})
    report = paths.EVALUATION_REPORT / "report.html"
    if report.is_file():
        tracked.log_artifact(report, "evaluation")


def _registration(version: RegisteredVersion, tracked: TrackedRun) -> dict[str, Any]:
    return {
        "model_name": version.name,
        "version": version.version,
        "run_id": version.run_id,
        "experiment_id": tracked.experiment_id,
        "run_url": tracked.url,
        "model_uri": version.uri,
        "weights_sha256": version.tags["weights.sha256"],
        "evaluation_sha256": fingerprint(FIGURES),
    }


def write_result(path: Path, values: Mapping[str, Any]) -> None:
    """Write a step's result as JSON; the file is the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    text = json.dumps(values, indent=2, ensure_ascii=False)
    try:
        with naming(path):
            temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_figures() -> dict[str, Any]:
    """The evaluation's metrics.

    Raises:
        PipelineError: the evaluation has not run, or its file is damaged.
    """
    return read_result(FIGURES, "evaluate_policy")


def read_result(path: Path, step: str) -> dict[str, Any]:
    """What another step wrote as JSON.

    Raises:
        PipelineError: that step has not run, or the file is not what it wrote.
    """
    if not path.is_file():
        raise PipelineError(f"{path} is missing: run the step {step} first")
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PipelineError(
            f"{path} is damaged ({error}); allowed is what the step {step} writes: run it again"
        ) from error
    return result


def _tags(
    config: RunConfig, figures: Mapping[str, Any], policy: Mapping[str, str]
) -> dict[str, str]:
    """Where the version comes from, and how it did.

    Code and data are as the runs that made the policy saw them: both may have changed since. Of the
    policy itself, as it is registered now (`policy`). A run that is gone says nothing.
    """
    found = {role: read_link(report / RUN_LINK) for role, report in _REPORTS.items()}
    runs = {role: run_id for role, run_id in found.items() if run_id is not None}
    tags: dict[str, str] = {}
    # what several of them know, the policy's own run knows best
    for role in ("train_reward_model", "evaluate", "train"):
        seen = run_tags(config.tracking, runs[role]) if role in runs else {}
        tags |= {name: seen[name] for name in seen if name.startswith(("data.", "git."))}
    tags |= {name: policy[name] for name in policy if name.startswith("data.")}
    tags |= {f"run.{role}": run_id for role, run_id in runs.items()}
    return tags | {
        f"evaluation.{name}": f"{figures[name]:.6g}"
        for name in config.register.metrics
        if isinstance(figures.get(name), (int, float))
    }


def _describe(figures: dict[str, Any]) -> str:
    names = (
        "reward.base",
        "reward.challenger",
        "reward.vs_base.low",
        "reward.vs_base.high",
        "confidence",
    )
    if not all(isinstance(figures.get(name), (int, float)) for name in names):
        return ""
    before, after, low, high, confidence = (figures[name] for name in names)
    return (
        f"Held-out reward {after:.3f}; base model {before:.3f}; {100 * confidence:g}% interval of "
        f"the difference {low:+.3f} to {high:+.3f}."
    )


if __name__ == "__main__":
    entry.main(run)
