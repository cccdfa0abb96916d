"""One setting puts each thing on S3: the base model, DVC's remote, MLflow's artifacts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from infra.create_buckets import create_buckets
from stateset_agents.exceptions import RegistryError
from stateset_agents.run_config import RunConfig
from stateset_agents.tracking.artifact_store import open_store
from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.mlflow_run import start_run
from stateset_agents.tracking.registry import download_version, register_version
from tasks import fetch_base_model
from tests.infra.servers import ROOT, ObjectStore, free_port, object_store

BIN = Path(sys.executable).parent


@pytest.fixture
def store(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The S3 store with its buckets, and the environment that leads every client to it."""
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    create_buckets(["settings"])
    return s3


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.usefixtures("store")
def test_the_base_model_comes_from_s3(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store("s3://settings/base/tiny").upload_folder(tiny_model_dir)
    monkeypatch.chdir(tmp_path)
    fetch_base_model.run(RunConfig(base_model={"source": "s3://settings/base/tiny"}))
    fetched = bytes_of(tmp_path / "data/base_model")
    assert fetched.pop("model_source.json")
    assert fetched == bytes_of(tiny_model_dir)


@pytest.mark.usefixtures("store")
def test_dvcs_outputs_go_to_s3_and_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dvc(*arguments: str | Path) -> None:
        done = subprocess.run(
            [str(one) for one in arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    monkeypatch.setenv("PATH", os.pathsep.join([str(BIN), os.environ["PATH"]]))
    monkeypatch.setenv("STATESET_DVC_REMOTE", "s3://settings/dvc")
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    dvc("dvc", "init", "--no-scm", "--quiet")
    for _ in range(2):  # a worker that is started again sets it again
        dvc(ROOT / "infra/set_dvc_remote.sh")
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/weights").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "policy/config.json").write_text("{}")
    made = bytes_of(tmp_path / "policy")
    dvc("dvc", "add", "--quiet", "policy")
    dvc("dvc", "push", "--quiet")
    shutil.rmtree(tmp_path / "policy")
    shutil.rmtree(tmp_path / ".dvc/cache")
    dvc("dvc", "pull", "--quiet")
    assert bytes_of(tmp_path / "policy") == made


def test_a_model_version_on_s3_outlives_the_store_that_took_it(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "STATESET_ARTIFACT_LOCATION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL", raising=False)
    tracking = TrackingConfig(
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", artifact_location="s3://settings/mlflow"
    )
    port = free_port()
    with object_store(tmp_path, port) as store:
        for name, value in store.env.items():
            if name != "MLFLOW_S3_ENDPOINT_URL":  # AWS_ENDPOINT_URL is enough for MLflow too
                monkeypatch.setenv(name, value)
        create_buckets(["settings"])
        with start_run(tracking, "register_model") as run:
            version = register_version(tracking, run, tiny_model_dir)
        listing = boto3.client("s3").list_objects_v2(Bucket="settings", Prefix="mlflow/")
        assert any(one["Key"].endswith("/model.safetensors") for one in listing["Contents"])
    with pytest.raises(RegistryError, match="Could not connect"):
        download_version(tracking, version.uri, tmp_path / "never")
    assert not (tmp_path / "never").exists()
    with object_store(tmp_path, port):
        download_version(tracking, version.uri, tmp_path / "again")
    weights = "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (tiny_model_dir / weights).read_bytes()
