"""The whole line on a tiny model, with real DVC, Prefect, MLflow and Great Expectations: started by
hand, and deployed on a real Prefect server and run by a real worker on data's own event.

One file, because one file stays on one worker of pytest-xdist: the line's first run is made once.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun

from flows.steps import STEPS
from tests.infra.servers import free_port
from tests.pipeline import project

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(600)]

ALL_STEPS = [step.name for step in STEPS]
PATIENCE_SECONDS = 180.0


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
    assert project.steps_run(folder)[:8] == ALL_STEPS
    for number, step in enumerate(ALL_STEPS, start=1):
        assert f"[{number}/8] {step}: done in" in output
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


def test_an_answer_leads_back_to_the_scenarios_that_its_version_was_trained_on(line: Path) -> None:
    registration = json.loads((line / "data/registration.json").read_text())
    name, version = registration["model_name"], registration["version"]
    digest = registration["weights_sha256"][:12]
    answer = {"model": f"{name}/{version}", "system_fingerprint": f"{name}-{version}-{digest}"}
    (line / ".stateset/answer.json").write_text(json.dumps(answer))
    command = ("-m", "stateset_agents.cli", "lineage", ".stateset/answer.json", "--json")
    done = project.run(line, *command)
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert set(found["runs"]) == {"train_reward_model", "train", "evaluate", "register"}
    assert found["runs"]["train"]["params"]["train.num_episodes"] == "2"
    assert len(found["code"]["revision"]) == 40
    assert set(found["data"]) == {
        *("base_model", "heldout", "policy", "preferences", "preferences_heldout"),
        *("reward_model", "scenarios"),
    }
    for data in found["data"].values():
        assert data["here"] == data["path"]
        assert data["dvc_md5"]
    rows = (line / "data/validated/train.jsonl").read_text(encoding="utf-8").splitlines()
    assert found["data"]["scenarios"]["ids"] == [json.loads(row)["id"] for row in rows]


def test_dvc_can_show_the_metrics_and_plots(line: Path) -> None:
    shown = json.loads(_dvc(line, "metrics", "show", "--json"))[""]["data"]
    assert "data/reports/evaluation/metrics.json" in shown
    assert "reward" in json.dumps(shown)
    _dvc(line, "plots", "show", "--out", "plots")
    assert (line / "plots/index.html").is_file()
    subprocess.run(["rm", "-r", "plots"], cwd=line, check=True)


def test_the_readmes_commands_on_versions_work_as_written(line: Path) -> None:
    readme = (project.ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python (-m flows\.promote [^#\n]+)", readme, re.M)
    asked = {command.split()[-1]: project.run(line, *command.split()) for command in commands}
    assert set(asked) == {"--history", "--rollback"}
    assert asked["--history"].returncode == 0, asked["--history"].stdout
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
        "tune",
        "train_policy",
        "evaluate_policy",
        *on_the_registry,
    ]
    assert "[3/8] train_reward_model: up to date" in done.stdout

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
        "tune",
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


@contextmanager
def _process(folder: Path, log: str, api: str, *arguments: str) -> Iterator[None]:
    with (folder / log).open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=folder,
            env=project.environment(folder, PREFECT_API_URL=api),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                # how fast Prefect's own processes end on a busy machine is not what is tested
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(what: str, is_done: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_done():
        assert time.monotonic() < end, f"{what} did not come; {log.read_text()[-4000:]}"
        time.sleep(0.5)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def api(first_run: tuple[Path, str]) -> Iterator[str]:
    """A Prefect server with the deployments of prefect.yaml and a worker in the project."""
    folder, _ = first_run
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    start = ("server", "start", "--host", "127.0.0.1", "--port", str(port))
    with _process(folder, ".stateset/server.log", address, *start):
        _wait("the server", lambda: _answers(f"{address}/health"), folder / ".stateset/server.log")
        for command in (
            ("work-pool", "create", "retraining", "--type", "process"),
            ("--no-prompt", "deploy", "--all"),
        ):
            done = project.run(folder, "-m", "prefect", *command, PREFECT_API_URL=address)
            assert done.returncode == 0, done.stdout
        work = ("worker", "start", "--pool", "retraining", "--limit", "1")
        with _process(folder, ".stateset/worker.log", address, *work):
            yield address


def _runs_of(api: str, deployment: str) -> list[FlowRun]:
    with SyncPrefectClient(api) as client:
        found = client.read_deployment_by_name(f"retrain/{deployment}")
        wanted = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[found.id]))
        return client.read_flow_runs(flow_run_filter=wanted)


def test_an_announcement_of_new_data_starts_the_line_and_it_completes(line: Path, api: str) -> None:
    before = project.steps_run(line)
    done = project.run(line, "-m", "flows.announce_data", PREFECT_API_URL=api)
    assert done.returncode == 0, done.stdout
    assert done.stdout == "announced: stateset.data.changed (scenarios)\n"

    def is_over() -> bool:
        runs = _runs_of(api, "on-new-data")
        return bool(runs) and all(run.state is not None and run.state.is_final() for run in runs)

    _wait("the end of the run", is_over, line / ".stateset/worker.log")
    (run,) = _runs_of(api, "on-new-data")
    assert run.state is not None
    assert run.state.is_completed(), (line / ".stateset/worker.log").read_text()[-4000:]
    assert run.parameters == {"until": "promote_model", "force": False}
    assert project.steps_run(line) == before  # the data had not changed after all
    with SyncPrefectClient(api) as client:
        artifacts = client.read_artifacts()
    own = [one for one in artifacts if one.flow_run_id == run.id]
    (table,) = [one for one in own if one.key == "retrain-result"]
    assert "| reward | base model |" in str(table.data)
    assert f"runs/{_mlflow_run(line)}" in str(table.data)


def _mlflow_run(folder: Path) -> str:
    return str(json.loads((folder / "data/registration.json").read_text())["run_id"])


def test_a_search_is_a_flow_below_with_a_run_for_each_trial(line: Path, api: str) -> None:
    path = line / "params.yaml"
    as_it_was = path.read_text(encoding="utf-8")
    params = yaml.safe_load(as_it_was)
    params["tune"] = {
        "n_trials": 2, "confirm_top": 1, "confirm_seeds": 1, "validation_samples": 1,
        "search_space": {"learning_rate": {"type": "loguniform", "low": 1e-4, "high": 1e-1}},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    before = len(project.steps_run(line))
    done = project.run(line, "-m", "flows.retrain", "--until", "tune", PREFECT_API_URL=api)
    assert done.returncode == 0, done.stdout
    assert project.steps_run(line, before) == ["tune"]

    summary = json.loads((line / "data/reports/tune/summary.json").read_text())
    trials = {f"trial {one['number']}": one for one in summary["trials"]}
    assert list(trials) == ["trial 0", "trial 1"]
    labels = {*trials, "base", "base again, seed 1"}
    (best,) = [one["number"] for one in summary["confirmations"] if one["number"] >= 0]
    labels.add(f"trial {best} again, seed 1")
    with SyncPrefectClient(api) as client:
        found = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags={"all_": ["tune"]}))
    assert {run.name for run in found} == labels
    for run in found:
        assert run.state is not None
        assert run.state.is_completed()
        assert run.parent_task_run_id is not None
        if run.name in trials:
            assert run.parameters["params"] == trials[run.name]["params"]
            assert f"reward {trials[run.name]['measures']['reward']:.4g}" in run.state.message

    client = mlflow.MlflowClient(f"sqlite:///{line / 'mlflow.db'}")
    study = json.loads((line / "data/reports/tune/mlflow_run.json").read_text())
    below = client.search_runs(
        [study["experiment_id"]], f"tags.`mlflow.parentRunId` = '{study['run_id']}'"
    )
    assert {run.info.run_name for run in below} == labels
    assert {run.info.status for run in below} == {"FINISHED"}

    tuned = yaml.safe_load((line / "data/tuned.yaml").read_text())
    won = summary["trials"][summary["best_trial"]["number"]]["params"]
    assert tuned["train"] in ({}, won)
    assert (tuned["train"] == {}) == ("the base configuration stays" in tuned["why"])
    page = (line / "data/reports/tune/report.html").read_text()
    assert page.count("data:image/png;base64,") == 3  # history, parameters, training
    path.write_text(as_it_was, encoding="utf-8")
    _dvc(line, "repro", "tune")
    assert yaml.safe_load((line / "data/tuned.yaml").read_text())["train"] == {}


def test_both_retrainings_run_one_at_a_time_and_let_the_next_one_wait(api: str) -> None:
    with SyncPrefectClient(api) as client:
        for name in ("nightly", "on-new-data"):
            deployment = client.read_deployment_by_name(f"retrain/{name}")
            assert deployment.global_concurrency_limit is not None
            assert deployment.global_concurrency_limit.limit == 1
            assert deployment.concurrency_options is not None
            assert deployment.concurrency_options.collision_strategy == "ENQUEUE"
        nightly = client.read_deployment_by_name("retrain/nightly")
    (schedule,) = nightly.schedules
    assert getattr(schedule.schedule, "cron", None) == "0 2 * * *"


def test_an_announcement_that_no_server_takes_is_one_clear_message(line: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}/api"
    done = project.run(
        line, "-m", "flows.announce_data", PREFECT_API_URL=address, PREFECT_CLIENT_MAX_RETRIES="0"
    )
    assert done.returncode == 1
    assert done.stdout.startswith(f"error: the Prefect server at {address} did not take the event")
    assert "Traceback" not in done.stdout
