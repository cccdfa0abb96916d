"""What every step does before and after its work: `python -m tasks.<step>`.

Owns the process: settings from params.yaml, logging, telemetry off, an error as a message and an
exit code, and the end of a step whose DVC died. What a step does is in its own file.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from stateset_agents import run_config
from stateset_agents.exceptions import StateSetError
from stateset_agents.run_config import RunConfig
from tasks import folders, history, paths

# Telemetry: nobody asked for it, and without a network each of these waits or logs errors.
# Progress bars for what takes no time; the steps have their own.
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)
_SHELLS = ("sh", "bash", "dash", "zsh", "fish", "ash", "ksh")


def main(run: Callable[[RunConfig], None]) -> None:
    """Run one step in this process and exit: 0, or 1 after the message of a `StateSetError` or of a
    disk that is full or not this user's to write.

    Any other exception keeps its traceback, because it is a defect and not a wrong input.
    """
    quieten()
    parser = argparse.ArgumentParser(description=(sys.modules["__main__"].__doc__ or "").strip())
    parser.add_argument("--params", type=Path, default=paths.PARAMS, help="default: %(default)s")
    arguments = parser.parse_args()
    set_up_logging()
    if "DVC_STAGE" in os.environ:
        end_with_parent()
    sys.exit(_run_recorded(run, arguments.params))


def _run_recorded(run: Callable[[RunConfig], None], params: Path) -> int:
    step = os.environ.get("DVC_STAGE") or Path(sys.argv[0]).stem
    started = time.time()
    code, message = 1, ""
    try:
        with folders.at_work(Path()):
            run(run_config.load(params))
        code = 0
    except StateSetError as error:
        message = str(error)
        print_error(error)
    except KeyboardInterrupt:
        code, message = 130, "interrupted; start again to go on from where it was"
        print_error(message)
    except OSError as error:
        if error.errno not in (*_NO_SPACE, *_NOT_ALLOWED):
            raise
        cure = "make room" if error.errno in _NO_SPACE else "give this user the right to it"
        message = f"{error}; {cure} and start again: what was there before is as it was"
        print_error(message)
    finally:
        seconds = time.time() - started
        record = history.StepRecord(step, started, seconds, code, message)
        try:
            history.append(Path(), record)
        except OSError as error:  # the step's own end is what counts, and it is told already
            print_error(f"{paths.STEP_HISTORY} cannot be written: {error}")
    return code


def quieten() -> None:
    """Set what each tool reads, unless the environment says otherwise."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def set_up_logging() -> None:
    """Warnings of everybody, information of this project; all of it with STATESET_DEBUG=1."""
    debug = os.environ.get("STATESET_DEBUG") == "1"
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(message)s" if not debug else "%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    for name in ("stateset_agents", "tasks", "flows", "__main__"):
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.INFO)


def print_error(error: Exception | str) -> None:
    """The message alone, on standard error."""
    sys.stdout.flush()
    sys.stderr.write(f"error: {error}\n")
    sys.stderr.flush()


def end_with_parent(interval_seconds: float = 0.5) -> None:
    """End this process soon after the process that started it is gone.

    A killed DVC leaves its step running, and the step would go on writing what the next start
    writes too. What is watched is the parent, and where that is a shell, the shell's parent also.
    """
    watched = _ancestry()

    def watch() -> None:
        while _ancestry() == watched:
            time.sleep(interval_seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def _ancestry() -> tuple[int, int | None]:
    """The parent's process id, and the grandparent's where the parent is a shell."""
    parent = os.getppid()
    try:
        # "pid (name) state ppid ...": the name may hold spaces and brackets
        name, _, rest = Path(f"/proc/{parent}/stat").read_text().partition(" (")[2].rpartition(") ")
    except OSError:
        return parent, None
    return parent, int(rest.split()[1]) if name in _SHELLS else None
