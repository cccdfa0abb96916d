"""What Prefect must find in the environment before it is imported.

Import this first in a module that imports Prefect. The lasting settings (home, start-up time)
stand in pyproject.toml under `tool.prefect`; here is what a person's terminal needs.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from stateset_agents.exceptions import PipelineError
from tasks import entry

MLFLOW_PORT = 5000
PREFECT_PORT = 4200


def prepare_terminal() -> None:
    """Leave the terminal to the steps: Prefect's own log still reaches its pages.

    With STATESET_DEBUG=1 it is shown as well.
    """
    if os.environ.get("STATESET_DEBUG") != "1":
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


def end_well_when_told() -> None:
    """Have SIGTERM end this process as the end of a program does, and not on the spot.

    Prefect ends the temporary server that it started when the program ends.
    """

    def end(number: int, _frame: object) -> None:
        sys.exit(128 + number)  # what a shell reports of a process that a signal ended

    signal.signal(signal.SIGTERM, end)


def prepare_steps() -> None:
    """Let the steps find this Python: DVC starts them as `python`, through a shell."""
    here = str(Path(sys.executable).parent)
    if here not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([here, os.environ.get("PATH", os.defpath)])


def find_repository() -> Path:
    """The checkout to work in: the nearest folder at or above this one that has a dvc.yaml.

    Raises:
        PipelineError: there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise PipelineError(
        f"{here}: found no dvc.yaml here or in a folder above; start from the project's root"
    )


def explain_no_server() -> str:
    """What to say when Prefect's temporary server does not answer in time."""
    from prefect.settings import get_current_settings

    seconds = get_current_settings().server.ephemeral.startup_timeout_seconds
    return (
        f"Prefect's temporary server did not start within {seconds:g} s; start again when the "
        "machine is less busy, allow more (PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS), name "
        "a server that runs (PREFECT_API_URL), or use none: dvc repro. Nothing was changed"
    )


def prefect_pages() -> str:
    """Where Prefect's pages are: on the server that is set, else where `make ui` puts them."""
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    address = settings.ui_url or settings.api.url or f"http://127.0.0.1:{PREFECT_PORT}"
    return address.removesuffix("/api")


entry.quieten()
