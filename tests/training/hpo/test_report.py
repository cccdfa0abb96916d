"""The report shows Optuna's plots of what there is to plot, as one page."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from stateset_agents.training.hpo.report import render_report
from stateset_agents.training.hpo.study import StoredStudy
from stateset_agents.training.hpo.summary import summarise
from tests.training.hpo.studies import make_plan, value


def _page(folder: Path, aims: dict[str, Any], n_trials: int) -> tuple[str, int]:
    """The page of a finished study, and how many trials are on its Pareto front."""
    study = StoredStudy(str(folder / "journal"), make_plan(aims=aims, n_trials=n_trials))
    while (trial := study.take()) is not None:
        if len(aims) == 1:  # what several aims have no use for
            study.report(trial, 1, value(trial.params))
        length = float(trial.params["num_generations"])
        measures = {"reward": value(trial.params), "answer_tokens": length}
        study.finish(trial, "complete", measures, 1.0)
    records = study.records()
    summary = summarise("s", "optuna", aims, records, (), {}, "a part of its own")
    page = render_report(summary, study.study, storage="db:5432/optuna", created="today")
    return page, len(summary.pareto_front)


def _titles(page: str) -> list[str]:
    return re.findall(r'alt="([^"]+)"', page)


def test_one_objective_has_history_importances_parameters_and_training(tmp_path: Path) -> None:
    page, _ = _page(tmp_path, {"reward": "maximize"}, 6)
    assert _titles(page) == [
        "History: reward", "Importances: reward", "Parameters: reward", "Training",
    ]  # fmt: skip
    pictures = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    assert len(set(pictures)) == 4
    assert all(base64.b64decode(one).startswith(b"\x89PNG") for one in pictures)
    assert "optuna-dashboard db:5432/optuna" in page
    assert not re.search(r'src="http|<link|@import', page)  # opens without a network


def test_too_few_trials_tell_no_importances(tmp_path: Path) -> None:
    page, _ = _page(tmp_path, {"reward": "maximize"}, 3)
    assert _titles(page) == ["History: reward", "Parameters: reward", "Training"]


def test_two_objectives_have_a_pareto_front(tmp_path: Path) -> None:
    page, on_the_front = _page(tmp_path, {"reward": "maximize", "answer_tokens": "minimize"}, 6)
    titles = _titles(page)
    assert titles[-1] == "Pareto front"
    assert {"History: reward", "History: answer_tokens", "Importances: answer_tokens"} < {*titles}
    assert "Training" not in titles
    assert 1 <= on_the_front <= 3  # one a number of generations at most
