"""Every command of `infra/compose.yaml` as a process, with a real PostgreSQL and S3 store."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import mlflow
import psycopg2
import pytest

from tests.infra import compose
from tests.infra.servers import (
    ACCESS_KEY,
    SECRET_KEY,
    ObjectStore,
    Postgres,
    free_port,
    running,
    wait_for_http,
)

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
        "prefect:4200": f"127.0.0.1:{prefect_port}",
        "localhost:5000": f"localhost:{mlflow_port}",
        "127.0.0.1:5000": f"127.0.0.1:{mlflow_port}",
        "0.0.0.0": "127.0.0.1",
        "5000": str(mlflow_port),
        "4200": str(prefect_port),
        "8000": str(serving_port),
    }


@contextlib.contextmanager
def service(name: str, addresses: dict[str, str], folder: Path) -> Iterator[None]:
    """One service of the compose file as a process, with a home of its own."""
    definition = compose.as_process(name, VARIABLES, addresses)
    program = BIN / definition.command[0]
    command = [str(program) if program.exists() else definition.command[0], *definition.command[1:]]
    home = folder / f"{name}-home"
    home.mkdir()
    env = {**definition.env, "HOME": str(home), "PREFECT_HOME": str(home / "prefect")}
    with running(command, folder / f"{name}.log", env) as process:
        yield
        assert process.poll() is None, (folder / f"{name}.log").read_text()[-3000:]


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


@pytest.mark.usefixtures("buckets")
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


def test_prefect_keeps_its_state_in_postgresql(
    postgres: Postgres, addresses: dict[str, str], tmp_path: Path
) -> None:
    with service("prefect", addresses, tmp_path):
        wait_for_http(f"http://{addresses['prefect:4200']}/api/health", 90)
    address = postgres.url("prefect").replace("+psycopg2", "")
    with contextlib.closing(psycopg2.connect(address)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM information_schema.tables WHERE table_name = 'flow_run'"
        )
        assert cursor.fetchone() == (1,)
