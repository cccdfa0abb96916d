"""The table at the end tells of this run, and of nothing that it did not come to."""

from __future__ import annotations

import json
from pathlib import Path

from flows import result
from flows.repository import StepOutcome
from tasks import paths

FIGURES = {
    "champion.version": "base",
    "confidence": 0.9,
    "reward.base": 0.4,
    "reward.challenger": 0.6,
    "reward.vs_base.mean": 0.2,
}


def _write(root: Path, path: Path, values: dict[str, object]) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(json.dumps(values))


def _outcomes(*steps: str) -> list[StepOutcome]:
    return [StepOutcome(step, True, 1.0) for step in steps]


def test_what_an_earlier_run_came_to_is_not_told_as_this_ones(tmp_path: Path) -> None:
    _write(tmp_path, paths.EVALUATION_REPORT / "metrics.json", FIGURES)
    _write(tmp_path, paths.PROMOTION, {"promoted": True, "version": "3", "reasons": []})
    early = result.read_result(tmp_path, _outcomes("train_policy"), None)
    assert (early.comparisons, early.promoted, early.version) == ((), None, None)
    assert "promotion: not reached" in result.as_text(early)
    whole = result.read_result(tmp_path, _outcomes("evaluate_policy", "promote_model"), None)
    assert "version 3: promoted" in result.as_text(whole)


def test_a_difference_without_an_interval_is_told_without_one(tmp_path: Path) -> None:
    _write(tmp_path, paths.EVALUATION_REPORT / "metrics.json", FIGURES)
    found = result.read_result(tmp_path, _outcomes("evaluate_policy"), None)
    assert "+0.200 (no interval)" in result.as_text(found)
    assert "| +0.200 | no interval |" in result.as_markdown(found)


def test_the_interval_is_told_with_the_coverage_that_it_was_drawn_for(tmp_path: Path) -> None:
    ends = {"reward.vs_base.low": 0.1, "reward.vs_base.high": 0.3}
    _write(tmp_path, paths.EVALUATION_REPORT / "metrics.json", FIGURES | ends)
    found = result.read_result(tmp_path, _outcomes("evaluate_policy"), None)
    assert "difference (90% interval)" in result.as_text(found)
    assert "| difference | 90% interval |" in result.as_markdown(found)


def test_the_run_of_a_server_is_linked_there_and_not_on_this_machine(tmp_path: Path) -> None:
    page = "https://mlflow.example.org/#/experiments/1/runs/abc"
    _write(tmp_path, paths.REGISTRATION, {"run_id": "abc", "experiment_id": "1", "run_url": page})
    found = result.read_result(tmp_path, _outcomes("register_model"), None)
    assert found.mlflow_page == page
