"""A machine of the work pool takes up a search whose own process died, and the step sums it up."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.pipeline import project

SEARCH = {
    "n_trials": 3, "confirm_top": 1, "confirm_seeds": 1, "validation_samples": 1,
    "sampler": "random", "study_name": "shared",
    "search_space": {"learning_rate": {"type": "loguniform", "low": 1e-4, "high": 1e-1}},
}  # fmt: skip
FLOW = "from flows.tune_worker import tune_worker; tune_worker(study_name='shared', idle_seconds=5)"


def _begin_and_die(folder: Path) -> None:
    journal = folder / ".stateset/tune.journal"
    leader = subprocess.Popen(
        [sys.executable, "-m", "tasks.tune"], cwd=folder, env=project.environment(folder)
    )
    while not (journal.exists() and b"mlflow_run" in journal.read_bytes()):
        assert leader.poll() is None
        time.sleep(0.1)
    leader.kill()
    leader.wait()


@pytest.mark.slow
def test_a_worker_flow_runs_what_a_killed_search_left(
    tmp_path: Path, roomy_tiny_model: Path
) -> None:
    folder = project.make_project(tmp_path / "project", roomy_tiny_model)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["tune"] = SEARCH
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for step in ("fetch_base_model", "validate_scenarios", "train_reward_model"):
        assert project.run(folder, "-m", f"tasks.{step}").returncode == 0
    _begin_and_die(folder)
    helped = project.run(folder, "-c", FLOW, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120")
    assert helped.returncode == 0, helped.stdout
    assert "3 trials of study shared were run here" in helped.stdout

    summed = project.run(folder, "-m", "tasks.tune")
    assert summed.returncode == 0, summed.stdout
    summary = json.loads((folder / "data/reports/tune/summary.json").read_text())
    assert [one["number"] for one in summary["trials"]] == [0, 1, 2]
    assert {one["state"] for one in summary["trials"]} == {"complete"}
