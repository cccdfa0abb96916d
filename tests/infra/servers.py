"""Real servers for the tests: PostgreSQL (Debian's), an S3 store (rclone's), and anything that
`infra/compose.yaml` starts, all on free loopback ports and each ended by its own process id."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key"


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    """Until something accepts connections; the log's end is in the error when nothing does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}:\n{log.read_text()[-3000:]}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise AssertionError(f"nothing on port {port} after {seconds} s:\n{log.read_text()[-3000:]}")


def wait_for_http(url: str, seconds: float, status: int = 200) -> None:
    """Until `url` answers with `status`."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                last = answer.status
        except urllib.error.HTTPError as error:
            last = error.code
        except OSError as error:
            last = error
        if last == status:
            return
        time.sleep(0.3)
    raise AssertionError(f"{url} did not answer {status} within {seconds} s; last: {last}")


@contextlib.contextmanager
def running(
    command: Sequence[str],
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    user: str | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own; it and its children end with the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            user=user,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait(5)


@dataclass(frozen=True)
class Postgres:
    """A server of its own with the databases that `infra/postgres` names."""

    port: int

    def url(self, database: str, driver: str = "postgresql+psycopg2") -> str:
        """SQLAlchemy's address of one database."""
        return f"{driver}://stateset@127.0.0.1:{self.port}/{database}"


def _postgres_program(name: str) -> str:
    found = shutil.which(name) or next(
        (str(p) for p in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None
    )
    if found is None:
        raise FileNotFoundError(name)
    return found


@contextlib.contextmanager
def postgres_server() -> Iterator[Postgres]:
    """PostgreSQL on a free port, trust authentication on loopback, gone after the block.

    Raises:
        FileNotFoundError: PostgreSQL is not installed (Debian: apt-get install postgresql).
    """
    initdb, server = _postgres_program("initdb"), _postgres_program("postgres")
    psql = _postgres_program("psql")
    # PostgreSQL refuses to run as root; Debian's package makes this user.
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="stateset-postgres-"))
    data, log, port = folder / "data", folder / "log", free_port()
    if user:
        shutil.chown(folder, user)
    try:
        subprocess.run(
            [initdb, "-D", str(data), "-U", "stateset", "-A", "trust", "--no-sync", "-E", "UTF8"],
            check=True, capture_output=True, user=user, cwd=folder,
        )  # fmt: skip
        command = [server, "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", str(folder)]
        with running(command, log, cwd=folder, user=user) as process:
            wait_for_port(port, process, log, 30)
            sql = "CREATE DATABASE mlflow;\n" + (
                ROOT / "infra/postgres/create-databases.sql"
            ).read_text(encoding="utf-8")
            subprocess.run(
                [psql, "-h", "127.0.0.1", "-p", str(port), "-U", "stateset", "-d", "postgres",
                 "-v", "ON_ERROR_STOP=1", "-q"],
                input=sql.encode(), check=True, capture_output=True,
            )  # fmt: skip
            yield Postgres(port)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class ObjectStore:
    """An S3 store on loopback and the environment that points every client at it."""

    endpoint: str

    @property
    def env(self) -> dict[str, str]:
        """What boto3, DVC and MLflow read."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextlib.contextmanager
def object_store(folder: Path, port: int | None = None) -> Iterator[ObjectStore]:
    """rclone's S3 server over `folder`: objects are files, and survive a restart."""
    port = port or free_port()
    (folder / "objects").mkdir(exist_ok=True)
    log = folder / "object-store.log"
    command = [
        str(Path(sys.executable).parent / "rclone"), "serve", "s3", str(folder / "objects"),
        "--addr", f"127.0.0.1:{port}", "--config", str(folder / "rclone.conf"),
    ]  # fmt: skip
    env = {"RCLONE_AUTH_KEY": f'"{ACCESS_KEY},{SECRET_KEY}"'}
    with running(command, log, env) as process:
        wait_for_port(port, process, log, 20)
        yield ObjectStore(f"http://127.0.0.1:{port}")
