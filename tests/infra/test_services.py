"""Every command of `infra/compose.yaml` as a process, with a real PostgreSQL and S3 store."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import httpx
import mlflow
import psycopg2
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.events import Event, Resource

from flows import automations
from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.mlflow_run import start_run
from stateset_agents.tracking.promotion import set_champion
from stateset_agents.tracking.registry import register_version
from tests.infra import compose
from tests.infra.servers import (
    ACCESS_KEY,
    ROOT,
    SECRET_KEY,
    ObjectStore,
    Postgres,
    free_port,
    running,
    wait_for_http,
)
from tests.pipeline import project

pytestmark = pytest.mark.pipeline

VARIABLES = {
    "POSTGRES_PASSWORD": "unused",  # loopback is trusted
    "OBJECT_STORE_ACCESS_KEY": ACCESS_KEY,
    "OBJECT_STORE_SECRET_KEY": SECRET_KEY,
    "STATESET_API_KEY": "test-api-key",
}
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def addresses(postgres: Postgres, s3: ObjectStore) -> dict[str, str]:
    """Where each service of the compose file is on this machine."""
    mlflow_port, prefect_port, serving_port = free_port(), free_port(), free_port()
    return {
        "postgres:5432": f"127.0.0.1:{postgres.port}",
        "object-store:9000": s3.endpoint.removeprefix("http://"),
        "mlflow:5000": f"127.0.0.1:{mlflow_port}",
        "serving:8000": f"127.0.0.1:{serving_port}",
        "prefect:4200": f"127.0.0.1:{prefect_port}",
        "localhost:5000": f"localhost:{mlflow_port}",
        "127.0.0.1:5000": f"127.0.0.1:{mlflow_port}",
        "0.0.0.0": "127.0.0.1",
        "5000": str(mlflow_port),
        "4200": str(prefect_port),
        "8000": str(serving_port),
    }


@contextlib.contextmanager
def service(name: str, addresses: dict[str, str], folder: Path, cwd: Path = ROOT) -> Iterator[Path]:
    """One service of the compose file as a process with a home of its own; gives its log."""
    definition = compose.as_process(name, VARIABLES, addresses)
    program = BIN / definition.command[0]
    command = [str(program) if program.exists() else definition.command[0], *definition.command[1:]]
    home, log = folder / f"{name}-home", folder / f"{name}.log"
    home.mkdir()
    env = {
        **definition.env,
        "HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
    }
    if cwd != ROOT:
        env["PYTHONPATH"] = os.pathsep.join([str(cwd), str(ROOT / "components")])
    if name == "mlflow":
        command += ["--workers", "1"]  # four of them take four times as long to start
    with running(command, log, env, cwd) as process:
        yield log
        assert process.poll() is None, log.read_text()[-3000:]


@pytest.fixture(scope="module")
def buckets(addresses: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """The one-shot service that makes the buckets, run to its end."""
    folder = tmp_path_factory.mktemp("buckets")
    definition = compose.as_process("buckets", VARIABLES, addresses)
    log = folder / "log"
    command = [sys.executable, *definition.command[1:]]
    with running(command, log, definition.env) as process:
        assert process.wait(60) == 0, log.read_text()


@pytest.fixture(scope="module")
def mlflow_server(
    buckets: None, addresses: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """MLflow as compose starts it."""
    with service("mlflow", addresses, tmp_path_factory.mktemp("mlflow")):
        url = f"http://{addresses['mlflow:5000']}"
        wait_for_http(f"{url}/health", 90)
        yield url


@pytest.fixture(scope="module")
def prefect_server(
    postgres: Postgres, addresses: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Prefect as compose starts it; gives the API's address."""
    with service("prefect", addresses, tmp_path_factory.mktemp("prefect")):
        url = f"http://{addresses['prefect:4200']}/api"
        wait_for_http(f"{url}/health", 90)
        yield url


def test_mlflow_keeps_runs_in_postgresql_and_artifacts_on_s3(
    mlflow_server: str, postgres: Postgres, s3: ObjectStore, tmp_path: Path
) -> None:
    client = mlflow.MlflowClient(tracking_uri=mlflow_server)
    run = client.create_run("0")
    client.log_metric(run.info.run_id, "reward", 0.5)
    (tmp_path / "note.txt").write_text("kept on S3", encoding="utf-8")
    client.log_artifact(run.info.run_id, str(tmp_path / "note.txt"))

    address = postgres.url("mlflow").replace("+psycopg2", "")
    with contextlib.closing(psycopg2.connect(address)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT value FROM metrics WHERE run_uuid = %s", (run.info.run_id,))
        assert cursor.fetchall() == [(0.5,)]
    objects = boto3.client(
        "s3", endpoint_url=s3.endpoint, aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY, region_name="us-east-1",
    )  # fmt: skip
    listing = objects.list_objects_v2(Bucket="stateset-artifacts", Prefix="mlflow/")
    assert [o["Key"].rsplit("/", 1)[1] for o in listing["Contents"]] == ["note.txt"]


def test_prefect_keeps_its_state_in_postgresql(prefect_server: str, postgres: Postgres) -> None:
    address = postgres.url("prefect").replace("+psycopg2", "")
    with SyncPrefectClient(prefect_server) as client:
        client.create_flow_from_name("kept")
    with contextlib.closing(psycopg2.connect(address)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT name FROM flow WHERE name = 'kept'")
        assert cursor.fetchall() == [("kept",)]


@pytest.fixture(scope="module")
def worker_folder(
    buckets: None,
    prefect_server: str,
    addresses: dict[str, str],
    tiny_model_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:
    """A copy of the project in which compose's worker is at work."""
    folder = project.make_project(tmp_path_factory.mktemp("worker") / "project", tiny_model_dir)
    shutil.copytree(ROOT / "infra", folder / "infra")
    with service("worker", addresses, folder.parent, cwd=folder) as log:
        wait_until(lambda: has_worker(prefect_server), log, 120)
        yield folder


def has_worker(api: str) -> bool:
    """Whether the server hears from a worker of the pool `retraining`."""
    answer = httpx.post(f"{api}/work_pools/retraining/workers/filter", json={})
    return answer.is_success and any(one["status"] == "ONLINE" for one in answer.json())


def wait_until(is_done: Callable[[], bool], log: Path, seconds: float) -> None:
    """Until something is so; the log's end is in the error when it never is."""
    deadline = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.5)


def test_the_worker_makes_the_pool_and_deploys_every_deployment(
    worker_folder: Path, prefect_server: str
) -> None:
    with SyncPrefectClient(prefect_server) as client:
        assert client.read_work_pool("retraining").type == "process"
        found = client.read_deployments()
    assert {one.name: one.work_pool_name for one in found} == {
        "nightly": "retraining",
        "on-new-data": "retraining",
        "tune-worker": "retraining",
    }
    # a run works in the checkout that the worker was started in
    step = "prefect.deployments.steps.set_working_directory"
    for one in found:
        assert one.pull_steps == [{step: {"directory": str(worker_folder)}}]


def test_the_workers_dvc_remote_is_the_s3_store(worker_folder: Path, s3: ObjectStore) -> None:
    listing = subprocess.run(
        [BIN / "dvc", "config", "--local", "--list"],
        cwd=worker_folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(listing.stdout.splitlines()) == {
        "core.remote=storage",
        "remote.storage.url=s3://stateset-dvc/cache",
        f"remote.storage.endpointurl={s3.endpoint}",
    }


def test_the_watch_over_silent_runs_is_there_once_and_kept_as_written(
    worker_folder: Path, prefect_server: str
) -> None:
    with SyncPrefectClient(prefect_server) as client:
        (of_the_worker,) = client.read_automations_by_name(automations.NAME)
        assert of_the_worker.enabled
        assert of_the_worker.trigger == automations.crash_silent_runs(90).trigger  # 3 times 30 s
        client.create_automation(automations.crash_silent_runs(600))  # a second worker's, older
        done = project.run(worker_folder, "-m", "flows.automations", PREFECT_API_URL=prefect_server)
        assert (done.returncode, done.stdout) == (0, "watching: crash-silent-runs\n")
        (left,) = client.read_automations_by_name(automations.NAME)
    assert left.trigger == of_the_worker.trigger


def test_a_run_whose_heartbeats_stop_is_marked_crashed(
    worker_folder: Path, prefect_server: str
) -> None:
    done = project.run(
        worker_folder, "-m", "flows.automations", "--silence-seconds", "10",
        PREFECT_API_URL=prefect_server,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    with SyncPrefectClient(prefect_server) as client:
        flow_id = str(client.create_flow_from_name("retrain"))
        created = client.request(
            "POST", "/flow_runs/", json={"flow_id": flow_id, "state": {"type": "RUNNING"}}
        )
        run_id = created.json()["id"]
        resource = Resource({"prefect.resource.id": f"prefect.flow-run.{run_id}"})
        beat = Event(event=automations.HEARTBEAT, resource=resource)
        client.request("POST", "/events", json=[beat.model_dump(mode="json")])

        def state() -> str:
            found = client.read_flow_run(run_id).state
            return "" if found is None else found.name

        assert state() == "Running"
        wait_until(lambda: state() == "Crashed", worker_folder.parent / "worker.log", 90)


@pytest.fixture(scope="module")
def chat_api(
    mlflow_server: str,
    addresses: dict[str, str],
    tiny_model_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Compose's serving, after a version was registered and promoted on its MLflow."""
    tracking = TrackingConfig(tracking_uri=mlflow_server)
    with start_run(tracking, "register_model") as run:
        generation = {"temperature": 0.0, "max_new_tokens": 6}
        version = register_version(tracking, run, tiny_model_dir, generation=generation)
    set_champion(tracking, version.version, "it is the only one")
    folder = tmp_path_factory.mktemp("serving")
    image = folder / "image"  # what the server's image has in its folder
    image.mkdir()
    shutil.copy(ROOT / "params.yaml", image)
    with service("serving", addresses, folder, cwd=image):
        url = f"http://{addresses['serving:8000']}"
        wait_for_http(f"{url}/ready", 90)
        yield url


def test_serving_answers_with_the_champion_from_the_registry_and_s3(chat_api: str) -> None:
    assert httpx.get(f"{chat_api}/health").status_code == 200
    question = {
        "model": "support-agent",
        "messages": [{"role": "user", "content": "Where is my parcel?"}],
    }
    url = f"{chat_api}/v1/chat/completions"
    assert httpx.post(url, json=question).status_code == 401
    key = {"Authorization": f"Bearer {VARIABLES['STATESET_API_KEY']}"}
    answer = httpx.post(url, json=question, headers=key, timeout=60)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["model"] == answer.headers["x-model-version"] == "support-agent/1"
    assert 0 < body["usage"]["completion_tokens"] <= 6
    assert body["choices"][0]["message"]["role"] == "assistant"
