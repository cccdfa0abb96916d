"""The pages: `python -m flows.ui` runs MLflow's and Prefect's until Ctrl-C.

Both show what is on this machine (or on the servers that MLFLOW_TRACKING_URI and PREFECT_API_URL
name: such a page is not started a second time, only its address is shown).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from flows import environment
from stateset_agents import run_config
from stateset_agents.exceptions import PipelineError, StateSetError
from tasks import entry, paths

HOST = "127.0.0.1"
START_SECONDS = 120.0


def main() -> int:
    """Start the pages, wait, and end them; the exit code is 0 after Ctrl-C."""
    entry.set_up_logging()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        os.chdir(environment.find_repository())
        pages = {"MLflow": _start_mlflow(processes), "Prefect": _start_prefect(processes)}
        for name, address in pages.items():
            _wait_until_it_answers(name, address, processes)
            print(f"{name + ':':<9}{address}", flush=True)
        if processes:
            print("Ctrl-C ends what was started", flush=True)
            _wait(processes)
    except StateSetError as error:
        entry.print_error(error)
        return 1
    except KeyboardInterrupt:
        print()
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            process.wait()
    return 0


def _start_mlflow(processes: list[subprocess.Popen[bytes]]) -> str:
    store = run_config.load(paths.PARAMS).tracking.effective_uri
    if store.startswith(("http://", "https://")):
        return store
    _require_free(environment.MLFLOW_PORT, "MLflow")
    command = ["mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    command += ["--host", HOST, "--port", str(environment.MLFLOW_PORT)]
    processes.append(_start("MLflow", command))
    return f"http://{HOST}:{environment.MLFLOW_PORT}"


def _start_prefect(processes: list[subprocess.Popen[bytes]]) -> str:
    named = os.environ.get("PREFECT_API_URL")
    if named:
        return named.removesuffix("/api")
    _require_free(environment.PREFECT_PORT, "Prefect")
    command = ["prefect", "server", "start", "--host", HOST]
    processes.append(_start("Prefect", [*command, "--port", str(environment.PREFECT_PORT)]))
    return f"http://{HOST}:{environment.PREFECT_PORT}"


def _start(name: str, command: list[str]) -> subprocess.Popen[bytes]:
    # By this Python: the scripts of a folder that was moved name one that is gone. In a session of
    # its own: Ctrl-C is for this process, which ends the other with all that it has started.
    module, *arguments = command
    paths.STATE.mkdir(exist_ok=True)
    with _log(name).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )


def _log(name: str) -> Path:
    return paths.STATE / f"{name.lower()}_page.log"


def _require_free(port: int, name: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise PipelineError(
                f"port {port} is in use, and {name}'s page needs it; end what holds it "
                f"(`lsof -i :{port}` names it)"
            ) from None


def _wait_until_it_answers(
    name: str, address: str, processes: list[subprocess.Popen[bytes]]
) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if any(process.poll() is not None for process in processes):
            break
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except urllib.error.HTTPError:
            return  # it answers, if only to ask for a password
        except OSError:
            time.sleep(0.3)
    raise PipelineError(f"{name}'s page at {address} does not answer; see {_log(name)}")


def _wait(processes: list[subprocess.Popen[bytes]]) -> None:
    while all(process.poll() is None for process in processes):
        time.sleep(0.5)
    raise PipelineError(f"a page has ended by itself; {paths.STATE}/*_page.log says why")


if __name__ == "__main__":
    sys.exit(main())
