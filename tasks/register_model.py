"""Step 6: register the trained policy as a new version, with where it came from and how it did.

Reads data/policy, data/base_model (an adapter is merged with it) and the evaluation's metrics;
writes data/registration.json: {model_name, version, run_id, experiment_id, run_url, model_uri,
weights_sha256, evaluation_sha256}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stateset_agents.exceptions import PipelineError
from stateset_agents.run_config import RunConfig
from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.lineage import collect_lineage, fingerprint
from stateset_agents.tracking.mlflow_run import RUN_LINK, read_link, run_tags, start_run
from stateset_agents.tracking.registry import register_version
from tasks import entry, paths
from tasks.folders import naming
from tasks.tuned import with_tuned

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
    if figures.get("policy.sha256") != fingerprint(paths.POLICY):
        raise PipelineError(
            f"{FIGURES} is not the evaluation of {paths.POLICY}, which was trained again since: "
            "run the step evaluate_policy first"
        )
    runs = _runs()
    tags = _origins(config.tracking, runs) | {f"run.{role}": one for role, one in runs.items()}
    tags |= {
        f"evaluation.{name}": f"{figures[name]:.6g}"
        for name in config.register.metrics
        if isinstance(figures.get(name), (int, float))
    }
    with start_run(config.tracking, "register_model", tags) as tracked:
        numbers = {k: v for k, v in figures.items() if isinstance(v, (int, float))}
        tracked.log_metrics(numbers)
        report = paths.EVALUATION_REPORT / "report.html"
        if report.is_file():
            tracked.log_artifact(report, "evaluation")
        version = register_version(
            config.tracking,
            tracked,
            paths.POLICY,
            base_model=paths.BASE_MODEL,
            generation=config.agent.model_dump(mode="json"),
            tags=tags,
            description=config.register.description or _describe(figures),
        )
    registration = {
        "model_name": version.name,
        "version": version.version,
        "run_id": version.run_id,
        "experiment_id": tracked.experiment_id,
        "run_url": tracked.url,
        "model_uri": version.uri,
        "weights_sha256": version.tags["weights.sha256"],
        "evaluation_sha256": fingerprint(FIGURES),
    }
    write_result(paths.REGISTRATION, registration)


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


def _runs() -> dict[str, str]:
    """The MLflow runs of the steps before, by what they did."""
    found = {role: read_link(report / RUN_LINK) for role, report in _REPORTS.items()}
    return {role: run_id for role, run_id in found.items() if run_id is not None}


def _origins(tracking: TrackingConfig, runs: Mapping[str, str]) -> dict[str, str]:
    """Code and data as the runs that made the policy saw them: both may have changed since. Of the
    policy itself, as it is registered now. A run that is gone says nothing.
    """
    tags: dict[str, str] = {}
    for role in ("train_reward_model", "train"):  # what both know, the policy's own run knows best
        seen = run_tags(tracking, runs[role]) if role in runs else {}
        tags |= {name: seen[name] for name in seen if name.startswith(("data.", "git."))}
    own = collect_lineage({"policy": paths.POLICY})
    return tags | {name: own[name] for name in own if name.startswith("data.")}


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
