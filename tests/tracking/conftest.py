"""Stores for these tests: MLflow on SQLite, copied from one that was set up once; an S3 server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.mlflow_run import open_client


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: making its tables takes seconds, copying it nothing."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    open_client(TrackingConfig(tracking_uri=f"sqlite:///{path}")).search_experiments()
    return path


@pytest.fixture
def tracking(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TrackingConfig:
    """A store of this test's own."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "STATESET_ARTIFACT_LOCATION"):
        monkeypatch.delenv(name, raising=False)
    database = shutil.copy(empty_database, tmp_path / "mlflow.db")
    return TrackingConfig(
        tracking_uri=f"sqlite:///{database}", artifact_location=str(tmp_path / "mlartifacts")
    )


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A real S3 server on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket, and the environment that leads to it."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.session.Session().client("s3")
    client.create_bucket(Bucket="models")
    yield "models"
    for entry in client.list_objects_v2(Bucket="models").get("Contents", []):
        client.delete_object(Bucket="models", Key=entry["Key"])
    client.delete_bucket(Bucket="models")
