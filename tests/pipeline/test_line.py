"""The whole line on a tiny model, with real DVC, Prefect, MLflow and Great Expectations."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import mlflow
import pytest
import yaml

from flows.steps import STEPS
from tests.pipeline import project

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(600)]

ALL_STEPS = [step.name for step in STEPS]


def _dvc(folder: Path, *arguments: str) -> str:
    done = project.run(folder, "-m", "dvc", *arguments)
    assert done.returncode == 0, done.stdout
    return done.stdout


def _edit_first_line(path: Path, key: str, change: str) -> None:
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    record = json.loads(first)
    if key == "chosen":
        record[key][0]["content"] += change
    else:
        record[key][0] += change
    path.write_text("\n".join([json.dumps(record), *rest]) + "\n", encoding="utf-8")


def test_the_first_run_runs_every_step_and_ends_with_the_table(
    first_run: tuple[Path, str],
) -> None:
    folder, output = first_run
    assert project.steps_run(folder)[:7] == ALL_STEPS
    for number, step in enumerate(ALL_STEPS, start=1):
        assert f"[{number}/7] {step}: done in" in output
    table = output[output.index("ran: fetch_base_model") :]
    assert "reward   vs base model" in table
    assert "rubric   vs base model" in table
    assert "version 1: " in table
    assert "data/reports/evaluation/report.html" in table
    assert "http://127.0.0.1:5000/#/experiments/" in table
    assert "http://127.0.0.1:4200/runs/flow-run/" in table
    assert "next:" in table


def test_git_sees_nothing_of_what_the_line_made_but_the_lock_file(line: Path) -> None:
    done = subprocess.run(
        ["git", "status", "--porcelain"], cwd=line, capture_output=True, text=True, check=True
    )
    changed = {row[3:] for row in done.stdout.splitlines()}
    assert changed <= {"dvc.lock", "data/scenarios/all.jsonl", "data/preferences/train.jsonl"}
    assert "dvc.lock" in changed


def test_the_registered_version_names_the_run_that_trained_it(line: Path) -> None:
    registration = json.loads((line / "data/registration.json").read_text())
    client = mlflow.MlflowClient(f"sqlite:///{line / 'mlflow.db'}")
    version = client.get_model_version(registration["model_name"], registration["version"])
    run = client.get_run(registration["run_id"])
    assert run.info.status == "FINISHED"
    assert version.run_id == registration["run_id"]


def test_dvc_can_show_the_metrics_and_plots(line: Path) -> None:
    shown = json.loads(_dvc(line, "metrics", "show", "--json"))[""]["data"]
    assert "data/reports/evaluation/metrics.json" in shown
    assert "reward" in json.dumps(shown)
    _dvc(line, "plots", "show", "--out", "plots")
    assert (line / "plots/index.html").is_file()
    subprocess.run(["rm", "-r", "plots"], cwd=line, check=True)


def test_the_readmes_commands_on_versions_and_formats_work_as_written(line: Path) -> None:
    readme = (project.ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(
        r"^python (-m (?:flows\.promote|stateset_agents\.data) [^#\n]+)", readme, re.M
    )
    asked = {command.split()[-1]: project.run(line, *command.split()) for command in commands}
    assert set(asked) == {"--history", "--lineage", "--rollback", "--help"}
    promoted = json.loads((line / "data/promotion.json").read_text())["champion"]
    for option in ("--history", "--lineage", "--help"):
        # before anything was promoted there is no history and nothing in service
        if promoted or option == "--help":
            assert asked[option].returncode == 0, asked[option].stdout
    assert "Traceback" not in "".join(done.stdout for done in asked.values())


def test_a_second_run_runs_nothing_with_prefect_or_without(line: Path) -> None:
    before = project.steps_run(line)
    done = project.run(line, "-m", "flows.retrain")
    assert done.returncode == 0, done.stdout
    assert "nothing to do: every step is up to date" in done.stdout
    assert "Data and pipelines are up to date." in _dvc(line, "repro")
    assert project.steps_run(line) == before


def test_one_changed_training_scenario_runs_exactly_what_depends_on_it(line: Path) -> None:
    path = line / "data/scenarios/all.jsonl"
    as_it_was = path.read_text(encoding="utf-8")
    before = len(project.steps_run(line))
    _edit_first_line(path, "user_responses", " Can you say more?")
    done = project.run(line, "-m", "flows.retrain")
    assert done.returncode == 0, done.stdout
    on_the_registry = ["register_model", "promote_model"]
    assert project.steps_run(line, before) == [
        "validate_scenarios",
        "train_policy",
        "evaluate_policy",
        *on_the_registry,
    ]
    assert "[3/7] train_reward_model: up to date" in done.stdout

    # Changed back, DVC has the policy in its cache. What acts on the registry, or compares with the
    # champion in it, really runs all the same.
    before = len(project.steps_run(line))
    path.write_text(as_it_was, encoding="utf-8")
    _dvc(line, "repro")
    assert project.steps_run(line, before) == ["evaluate_policy", *on_the_registry]


def test_one_changed_preference_pair_trains_the_reward_model_and_what_follows(line: Path) -> None:
    before = len(project.steps_run(line))
    _edit_first_line(line / "data/preferences/train.jsonl", "chosen", " Thank you for waiting.")
    _dvc(line, "repro", "evaluate_policy")
    assert project.steps_run(line, before) == [
        "validate_scenarios",
        "train_reward_model",
        "train_policy",
        "evaluate_policy",
    ]
    _dvc(line, "repro")


def test_a_broken_scenario_stops_the_flow_with_one_message_and_loses_nothing(line: Path) -> None:
    path = line / "data/scenarios/all.jsonl"
    as_it_was = path.read_text(encoding="utf-8")
    validated = (line / "data/validated/train.jsonl").read_bytes()
    first, *rest = as_it_was.splitlines()
    path.write_text("\n".join([first[:-1], *rest]) + "\n", encoding="utf-8")
    done = project.run(line, "-m", "flows.retrain")
    path.write_text(as_it_was, encoding="utf-8")
    assert done.returncode == 1
    assert done.stdout.count("data/scenarios/all.jsonl:1: malformed JSON") == 1, done.stdout
    assert "step validate_scenarios failed" in done.stdout
    assert "Traceback" not in done.stdout
    assert (line / "data/validated/train.jsonl").read_bytes() == validated


def test_a_wrong_parameter_stops_the_step_that_reads_it(line: Path) -> None:
    path = line / "params.yaml"
    as_it_was = path.read_text(encoding="utf-8")
    params = yaml.safe_load(as_it_was)
    params["promote"]["min_diference"] = 0.1
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    done = project.run(line, "-m", "dvc", "repro", "--single-item", "promote_model")
    path.write_text(as_it_was, encoding="utf-8")
    assert done.returncode != 0
    assert "promote.min_diference: unknown key; did you mean `min_difference`?" in done.stdout, (
        done.stdout
    )
    assert (line / "data/promotion.json").is_file()
