"""Deployed on a real Prefect server and run by a real worker, on data's own event."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun

from tests.infra.servers import free_port
from tests.pipeline import project

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(600)]

PATIENCE_SECONDS = 180.0


@contextmanager
def _process(folder: Path, log: str, api: str, *arguments: str) -> Iterator[None]:
    with (folder / log).open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=folder,
            env=project.environment(folder, PREFECT_API_URL=api),
            stdout=file,
            stderr=file,
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


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


def test_both_deployments_run_one_at_a_time_and_let_the_next_one_wait(api: str) -> None:
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
