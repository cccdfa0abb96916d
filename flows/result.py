"""What a retraining came to, as a short table for a terminal and as markdown for Prefect's page.

Owns how the result reads. The figures are the steps' own files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.environment import MLFLOW_PORT
from flows.repository import StepOutcome
from stateset_agents.tracking.promotion import interval_name
from tasks import paths

COMPARED = ("reward", "rubric")  # the whole, and the part that was not learned


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure on the held-out scenarios. `low` and `high` bound `difference` with the coverage
    `Result.confidence`; None where a single scenario (or intent) gives no interval.
    """

    measure: str
    before_is: str
    before: float
    after: float
    difference: float
    low: float | None
    high: float | None

    @property
    def interval(self) -> str:
        """The bounds for a person."""
        if self.low is None or self.high is None:
            return "no interval"
        return f"{self.low:+.3f} to {self.high:+.3f}"


@dataclass(frozen=True, slots=True)
class Result:
    """The end of a retraining; what its steps have not come to yet is empty or None."""

    outcomes: tuple[StepOutcome, ...]
    comparisons: tuple[Comparison, ...]
    confidence: float | None
    promoted: bool | None
    version: str | None
    reasons: tuple[str, ...]
    mlflow_page: str | None
    prefect_page: str | None

    @property
    def interval_name(self) -> str:
        """Which interval stands beside the differences, such as "95% interval"."""
        return interval_name(self.confidence)


def read_result(root: Path, outcomes: Sequence[StepOutcome], prefect_page: str | None) -> Result:
    """Collect what the steps in `outcomes` wrote; the files of a later step are of another run."""
    reached = {outcome.step for outcome in outcomes}
    metrics, registration, promotion = (
        _read(root / path) if step in reached else {}
        for step, path in (
            ("evaluate_policy", paths.EVALUATION_REPORT / "metrics.json"),
            ("register_model", paths.REGISTRATION),
            ("promote_model", paths.PROMOTION),
        )
    )
    return Result(
        outcomes=tuple(outcomes),
        comparisons=_compare(metrics),
        confidence=metrics.get("confidence"),
        promoted=promotion.get("promoted"),
        version=_text(promotion.get("version") or registration.get("version")),
        reasons=tuple(promotion.get("reasons", ())),
        mlflow_page=_mlflow_page(registration),
        prefect_page=prefect_page,
    )


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _compare(metrics: dict[str, Any]) -> tuple[Comparison, ...]:
    if not metrics:
        return ()
    version = metrics["champion.version"]
    rows = []
    others = [("champion", f"champion, version {version}")] if version != "base" else []
    for other, name in [*others, ("base", "base model")]:
        for measure in COMPARED:
            if f"{measure}.challenger" in metrics:
                rows.append(
                    Comparison(
                        measure,
                        name,
                        metrics[f"{measure}.{other}"],
                        metrics[f"{measure}.challenger"],
                        metrics[f"{measure}.vs_{other}.mean"],
                        metrics.get(f"{measure}.vs_{other}.low"),
                        metrics.get(f"{measure}.vs_{other}.high"),
                    )
                )
    return tuple(rows)


def _mlflow_page(registration: dict[str, Any]) -> str | None:
    if registration.get("run_url"):
        return str(registration["run_url"])
    # a database has no pages; `make ui` opens some here
    run, experiment = registration.get("run_id"), registration.get("experiment_id")
    if run is None or experiment is None:
        return None
    return f"http://127.0.0.1:{MLFLOW_PORT}/#/experiments/{experiment}/runs/{run}"


def as_text(result: Result) -> str:
    """The table that ends `make retrain`."""
    lines = ["", _steps_line(result.outcomes)]
    if result.comparisons:
        heading = f"difference ({result.interval_name})"
        lines += ["", f"held-out scenarios        before   after  {heading}"]
        lines += [
            f"  {row.measure:<8} {'vs ' + row.before_is:<21}"[:33].ljust(24)
            + f"{row.before:>8.3f}{row.after:>8.3f}  "
            f"{row.difference:+.3f} ({row.interval})"
            for row in result.comparisons
        ]
    lines += ["", *_verdict(result), "", *_places(result)]
    return "\n".join(lines) + "\n"


def _steps_line(outcomes: Sequence[StepOutcome]) -> str:
    ran = [f"{outcome.step} ({outcome.seconds:.0f} s)" for outcome in outcomes if outcome.ran]
    if not ran:
        return "nothing to do: every step is up to date"
    idle = len(outcomes) - len(ran)
    return f"ran: {', '.join(ran)}" + (f"; up to date: {idle}" if idle else "")


def _verdict(result: Result) -> list[str]:
    if result.promoted is None:
        return ["promotion: not reached"]
    word = "promoted" if result.promoted else "not promoted"
    return [f"version {result.version}: {word}", *[f"  - {reason}" for reason in result.reasons]]


def _places(result: Result) -> list[str]:
    report = paths.EVALUATION_REPORT / "report.html"
    return [
        f"report:   {report}   data: {paths.DATA_REPORT}",
        f"MLflow:   {result.mlflow_page or '-'}",
        f"Prefect:  {result.prefect_page or '-'}",
        "          (`make ui` opens both)",
        "next:     make serve" if result.promoted else f"next:     read {report}",
    ]


def as_markdown(result: Result) -> str:
    """The same for Prefect's page."""
    lines = ["# Retraining", "", _steps_line(result.outcomes), ""]
    if result.comparisons:
        lines += [
            f"| held-out | compared with | before | after | difference | {result.interval_name} |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {row.measure} | {row.before_is} | {row.before:.3f} | {row.after:.3f} "
            f"| {row.difference:+.3f} | {row.interval} |"
            for row in result.comparisons
        ]
    lines += ["", *_verdict(result)]
    if result.mlflow_page:
        lines += ["", f"[The MLflow run]({result.mlflow_page})"]
    return "\n".join(lines) + "\n"
