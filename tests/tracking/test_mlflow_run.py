"""A run is opened, filled and ended in the store that was named, or an error comes soon."""

from __future__ import annotations

import http.server
import json
import socket
import sqlite3
import threading
from pathlib import Path

import pytest

from stateset_agents.exceptions import CheckpointError, RegistryError
from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.mlflow_run import TrackedRun, open_client, read_link, shown, start_run


def test_a_run_keeps_tags_parameters_numbers_and_files(
    tracking: TrackingConfig, tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text("<p>")
    params = {"train": {"learning_rate": 3e-4, "targets": ["q", "v"]}, "note": "x" * 10_000}
    with start_run(tracking, "train_policy", {"git.revision": "abc"}, params=params) as run:
        run.log_metrics({"reward": 0.5})
        run.log_artifact(tmp_path / "report.html", "reports")
        run.write_link(tmp_path / "out" / "mlflow_run.json")
    kept = run.client.get_run(run.run_id)
    assert kept.info.status == "FINISHED"
    assert kept.info.run_name == "train_policy"
    assert kept.data.tags["git.revision"] == "abc"
    assert kept.data.params["train.learning_rate"] == "0.0003"
    assert kept.data.params["train.targets"] == "['q', 'v']"
    assert set(kept.data.params["note"]) == {"x"}
    assert kept.data.metrics == {"reward": 0.5}
    files = run.client.list_artifacts(run.run_id, "reports")
    assert [file.path for file in files] == ["reports/report.html"]
    assert kept.info.artifact_uri.startswith((tmp_path / "mlartifacts").as_uri())
    assert read_link(tmp_path / "out" / "mlflow_run.json") == run.run_id
    assert read_link(tmp_path / "no_such.json") is None


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_run_that_raises_ends_so_and_the_error_goes_on(
    error: BaseException, status: str, tracking: TrackingConfig
) -> None:
    with pytest.raises(type(error)), start_run(tracking, "test") as run:
        raise error
    assert run.client.get_run(run.run_id).info.status == status


def test_an_error_is_not_lost_where_mlflow_cannot_be_told_of_it(
    tracking: TrackingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    database = Path(tracking.tracking_uri.removeprefix("sqlite:///"))

    def fill_the_disk() -> None:
        with start_run(tracking, "train_policy"), sqlite3.connect(database) as connection:
            connection.execute("DROP TABLE runs")  # what comes after fails, as on a full disk
            raise CheckpointError("no space left")

    with pytest.raises(CheckpointError, match="no space left"):
        fill_the_disk()
    assert "MLflow refuses the end of run train_policy" in caplog.text


def test_a_run_is_continued_by_its_id_and_a_new_one_starts_where_there_is_none(
    tracking: TrackingConfig,
) -> None:
    with start_run(tracking, "first") as first:
        first.log_metrics({"reward": 0.1}, step=0)
    with start_run(tracking, "again", resume_run_id=first.run_id) as again:
        again.log_metrics({"reward": 0.2}, step=1)
        assert again.client.get_run(first.run_id).info.status == "RUNNING"
    assert again.run_id == first.run_id
    assert len(again.client.get_metric_history(first.run_id, "reward")) == 2
    with start_run(tracking, "other", resume_run_id="0" * 32) as other:
        assert other.run_id not in (first.run_id, "0" * 32)


def test_the_environment_wins_over_the_file(
    tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of the environment")
    other = TrackingConfig(tracking_uri="http://127.0.0.1:1", artifact_location="s3://bucket/x")
    monkeypatch.setenv("STATESET_ARTIFACT_LOCATION", "s3://other/y")
    assert other.effective_artifact_location == "s3://other/y"
    monkeypatch.delenv("STATESET_ARTIFACT_LOCATION")
    assert other.effective_artifact_location == "s3://bucket/x"
    with start_run(other, "test") as run:
        experiment = run.client.get_experiment(run.experiment_id)
    assert (experiment.name, experiment.artifact_location) == (
        "of the environment",
        "s3://bucket/x",
    )


def test_an_mlflow_server_decides_on_artifacts_itself() -> None:
    assert TrackingConfig(tracking_uri="http://mlflow:5000").effective_artifact_location is None


def test_a_parent_run_in_the_environment_is_the_runs_parent(
    tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start_run(tracking, "retrain") as parent:
        monkeypatch.setenv("STATESET_PARENT_RUN_ID", parent.run_id)
        with start_run(tracking, "step") as child:
            pass
    assert child.client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:1", "postgresql+psycopg2://me:secret@127.0.0.1:1/mlflow"]
)
def test_a_store_that_does_not_answer_is_one_clear_error(uri: str) -> None:
    config = TrackingConfig(tracking_uri=uri, answer_seconds=0.5)
    with pytest.raises(RegistryError, match=r"does not answer: .* within 0\.5 s") as caught:
        open_client(config)
    assert "tracking.tracking_uri" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_silent_or_broken_is_told_from_one_that_answers() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        status = 503

        def do_GET(self) -> None:
            self.send_response(self.status)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        config = TrackingConfig(tracking_uri=uri, answer_seconds=0.5)
        with pytest.raises(RegistryError, match="HTTP 503 within"):
            open_client(config)
        Handler.status = 200
        open_client(config)
        server.shutdown()


def test_a_folder_as_a_store_is_refused_with_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"allowed: sqlite:///FILE, postgresql"):
        open_client(TrackingConfig(tracking_uri=str(tmp_path / "mlruns"))).search_experiments()


def test_a_database_without_its_driver_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as database:  # something that can be knocked at
        uri = f"postgresql+pg8000://me@127.0.0.1:{database.getsockname()[1]}/mlflow"
        told = r"cannot use the store .*pg8000.*; allowed: .*postgresql\+psycopg2://"
        with pytest.raises(RegistryError, match=told):
            open_client(TrackingConfig(tracking_uri=uri))


def test_a_deleted_experiment_is_named(tracking: TrackingConfig) -> None:
    with start_run(tracking, "test") as run:
        pass
    run.client.delete_experiment(run.experiment_id)
    with pytest.raises(RegistryError, match=r"'retrain' is deleted; restore it"):
        start_run(tracking, "test").__enter__()


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    assert shown("postgresql://me:pa@host:5432/db") == "postgresql://me:***@host:5432/db"
    assert shown("sqlite:///mlflow.db") == "sqlite:///mlflow.db"
    link = tmp_path / "link.json"
    client = open_client(TrackingConfig(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db"))
    run = TrackedRun(client, "abc", "1", "http://me:pa@host:5000/mlflow/")
    run.write_link(link)
    assert json.loads(link.read_text()) == {
        "run_id": "abc",
        "experiment_id": "1",
        "tracking_uri": "http://me:***@host:5000/mlflow/",
        "url": "http://host:5000/mlflow/#/experiments/1/runs/abc",
    }
    link.write_text(json.dumps({"run_id": "abc"}))
    assert read_link(link) == "abc"
