"""MLflow runs, as the steps use them.

Owns the way to the tracking store (telemetry off, a store that does not answer is one clear error
within seconds) and the life of a run. It does not know what a step does. Nothing here sets MLflow's
global state: the store and the run are always named.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from stateset_agents.exceptions import RegistryError
from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.loggers import MlflowLogger

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_log = logging.getLogger(__name__)

RUN_LINK = "mlflow_run.json"
_MAX_PARAM_CHARACTERS = 6000
_MAX_TAG_CHARACTERS = 5000

# MLflow retries for four minutes by default, which looks like a step that hangs. All of these can
# be set from outside.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def open_client(tracking: TrackingConfig) -> MlflowClient:
    """A client of the tracking store and the registry in it.

    Raises:
        RegistryError: nothing answers at the address within `answer_seconds`, or what is there is
            not a store that MLflow can use.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    uri = tracking.effective_uri
    check_answers(uri, tracking.answer_seconds)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        # (SQLAlchemy loads a driver by the address: plain postgresql:// means another than ours)
        raise RegistryError(
            f"MLflow cannot use the store {shown(uri)}: {error}; allowed: sqlite:///FILE, "
            "postgresql+psycopg2://... (extra postgres), http(s)://... (params.yaml "
            "tracking.tracking_uri, or MLFLOW_TRACKING_URI)"
        ) from error


def check_answers(uri: str, seconds: float) -> None:
    """See whether something answers at a store's address, for at most `seconds`.

    Raises:
        RegistryError: nothing does, or it is a server with an error of its own.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        problem = _ask_server(uri, seconds)
    elif parts.scheme.startswith("postgresql") and parts.hostname:
        problem = _knock(parts.hostname, parts.port or 5432, seconds)
    else:
        return
    if problem:
        raise RegistryError(
            f"MLflow at {shown(uri)} does not answer: {problem}. Start it, or name another store "
            "in params.yaml (tracking.tracking_uri) or in MLFLOW_TRACKING_URI; sqlite:///mlflow.db "
            "needs no server"
        )


def shown(uri: str) -> str:
    """A store's address without the password that may be in it."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    return parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")).geturl()


def _ask_server(uri: str, seconds: float) -> str | None:
    import requests

    deadline = time.monotonic() + seconds
    problem = "no answer"
    # a server that is starting refuses connections for a moment, so ask again until the deadline
    while (left := deadline - time.monotonic()) > 0:
        try:
            answer = requests.get(f"{uri.rstrip('/')}/health", timeout=max(0.5, left))
        except requests.RequestException as error:
            problem = type(error).__name__
        else:
            if answer.status_code < 500:
                return None
            problem = f"HTTP {answer.status_code}"
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
    return f"{problem} within {seconds:g} s"


def _knock(host: str, port: int, seconds: float) -> str | None:
    deadline = time.monotonic() + seconds
    problem = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            socket.create_connection((host, port), timeout=max(0.5, left)).close()
            return None
        except OSError as error:
            problem = error.strerror or type(error).__name__
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
    return f"{problem} within {seconds:g} s"


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run that is open. Every call names the run, so any thread may use it."""

    client: MlflowClient
    run_id: str
    experiment_id: str
    tracking_uri: str

    def metric_logger(self, *, every: int = 1) -> MlflowLogger:
        """A `MetricLogger` of this run; `every` is the number of steps sent together."""
        return MlflowLogger(self.client, self.run_id, every=every)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Numbers of the whole run, or of one step."""
        with attributed("metrics"):
            self.metric_logger().log(step, metrics)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Settings, nested ones by dotted names; a long value is cut where MLflow would refuse.

        A run that is continued may log the same values again, not others: MLflow's rule.
        """
        from mlflow.entities import Param

        flat = flatten(params)
        rows = [Param(name, str(value)[:_MAX_PARAM_CHARACTERS]) for name, value in flat.items()]
        with attributed("parameters"):
            for start in range(0, len(rows), 100):  # MLflow's limit in one call
                self.client.log_batch(self.run_id, params=rows[start : start + 100])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the run."""
        with attributed("tags"):
            for name, value in tags.items():
                self.client.set_tag(self.run_id, name, str(value)[:_MAX_TAG_CHARACTERS])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file, or a folder with everything in it, with the run."""
        path = Path(path)
        with attributed(f"artifact {path}"):
            if path.is_dir():
                self.client.log_artifacts(self.run_id, str(path), folder or path.name)
            else:
                self.client.log_artifact(self.run_id, str(path), folder)

    @property
    def url(self) -> str | None:
        """The run's page, if the store is a server; None for a database, which has no pages until
        `make ui` opens some.
        """
        if not self.tracking_uri.startswith(("http://", "https://")):
            return None
        parts = urlsplit(self.tracking_uri.rstrip("/"))
        # the page's address goes into files, reports and terminals; a name and password do not
        base = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        return f"{base}/#/experiments/{self.experiment_id}/runs/{self.run_id}"

    def write_link(self, path: Path) -> None:
        """Write down which run this is, for the steps that come later (`read_link`)."""
        link = {
            "run_id": self.run_id,
            "experiment_id": self.experiment_id,
            "tracking_uri": shown(self.tracking_uri),
            "url": self.url,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        # renamed into place: a resumed run reads it, and half of it would stop every later start
        unfinished = path.with_name(f".{path.name}.tmp")
        unfinished.write_text(json.dumps(link, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        unfinished.replace(path)


def read_link(path: Path) -> str | None:
    """The run id that a step left at `path` with `TrackedRun.write_link`; None if it left none."""
    if not path.is_file():
        return None
    return str(json.loads(path.read_text(encoding="utf-8"))["run_id"])


def run_tags(tracking: TrackingConfig, run_id: str) -> dict[str, str]:
    """The tags of a run; {} where the store has no such run (any more).

    Raises:
        RegistryError: MLflow does not answer.
    """
    run = get_run(open_client(tracking), run_id)
    return {} if run is None else dict(run.data.tags)


def find_run(tracking: TrackingConfig, run_id: str) -> TrackedRun | None:
    """A run that is there already, as it is; None where the store has no such run (any more).

    Raises:
        RegistryError: MLflow does not answer.
    """
    client = open_client(tracking)
    run = get_run(client, run_id)
    if run is None or run.info.lifecycle_stage != "active":
        return None
    return TrackedRun(client, run_id, str(run.info.experiment_id), tracking.effective_uri)


def get_run(client: MlflowClient, run_id: str) -> Run | None:
    """MLflow's own description of a run; None where the store has no such run.

    Raises:
        RegistryError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise RegistryError(f"MLflow cannot read the run {run_id}: {error}") from error


@contextlib.contextmanager
def start_run(
    tracking: TrackingConfig,
    name: str,
    tags: Mapping[str, str] | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    resume_run_id: str | None = None,
    parent_run_id: str | None = None,
) -> Iterator[TrackedRun]:
    """A run for the length of a `with` block.

    It ends FINISHED, or FAILED (KILLED after an interrupt) when the block raises; a process that is
    killed leaves it RUNNING, and `resume_run_id` continues it if it still exists. What the block
    raised goes on, also where MLflow cannot be told of it.
    STATESET_PARENT_RUN_ID in the environment puts the run below another one.

    Args:
        tracking: where.
        name: the run's name, for people.
        tags: for instance `lineage.collect_lineage(...)`.
        params: logged as by `TrackedRun.log_params`.
        resume_run_id: a run to go on with.
        parent_run_id: a run that this one is below, instead of STATESET_PARENT_RUN_ID's.

    Raises:
        RegistryError: MLflow does not answer or refuses.
    """
    client = open_client(tracking)
    with attributed(f"run {name}"):
        experiment_id = _experiment(client, tracking)
        run_id = _continued(client, resume_run_id, experiment_id)
        if run_id is None:
            parent = parent_run_id or os.environ.get("STATESET_PARENT_RUN_ID")
            own = {"mlflow.parentRunId": parent} if parent else {}
            run_id = client.create_run(experiment_id, run_name=name, tags=own).info.run_id
    run = TrackedRun(client, run_id, experiment_id, tracking.effective_uri)
    try:
        run.set_tags(tags or {})
        if params:
            run.log_params(params)
        yield run
    except BaseException as error:
        try:
            _end(run, name, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        except RegistryError as another:  # a full disk or a dead server has hit both
            _log.warning("%s", another)
        raise
    _end(run, name, "FINISHED")


def _end(run: TrackedRun, name: str, status: str) -> None:
    with attributed(f"the end of run {name}"):
        run.client.set_terminated(run.run_id, status)


def _continued(client: MlflowClient, run_id: str | None, experiment_id: str) -> str | None:
    """`run_id` if there is such a run in this experiment, set to RUNNING again."""
    if run_id is None:
        return None
    run = get_run(client, run_id)
    if run is None:
        # the checkpoint may be from another store (a copied folder): that run cannot go on here
        return None
    if run.info.experiment_id != experiment_id or run.info.lifecycle_stage != "active":
        return None
    client.update_run(run_id, status="RUNNING")
    return run_id


def _experiment(client: MlflowClient, tracking: TrackingConfig) -> str:
    from mlflow.exceptions import MlflowException

    name = tracking.effective_experiment
    known = client.get_experiment_by_name(name)
    if known is None:
        try:
            location = tracking.effective_artifact_location
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            # another step made it between the two calls
            known = client.get_experiment_by_name(name)
            if known is None:
                raise
    if known.lifecycle_stage != "active":
        raise RegistryError(
            f"the MLflow experiment {name!r} is deleted; restore it (mlflow experiments restore "
            f"--experiment-id {known.experiment_id}) or name another in params.yaml "
            "(tracking.experiment)"
        )
    return str(known.experiment_id)


@contextlib.contextmanager
def attributed(what: str, *, by: str = "MLflow") -> Iterator[None]:
    """MLflow's and its database's errors as ours: `by` refuses `what`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise RegistryError(f"{by} refuses {what}: {error}") from error


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to one level with dotted names; lists and scalars stay as they are."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
