"""Outputs that are whole or not there: written beside their place, moved when they are finished.

Owns those unfinished files, also what a step that was killed left of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from stateset_agents.exceptions import PipelineError
from stateset_agents.tracking.whole_folder import UNFINISHED, in_place_of, put_all_back
from tasks import paths

_UNFINISHED_OUTPUTS = (
    *(paths.BASE_MODEL, paths.VALIDATED, paths.REWARD_MODEL, paths.POLICY),
    *(
        paths.TUNED,
        paths.TUNE_REPORT,
        paths.REGISTRATION,
        paths.PROMOTION,
        Path("transfer"),
        Path("version"),
        Path("writing"),
    ),
)
_OUTPUT = rf"(?:{'|'.join(re.escape(path.name) for path in _UNFINISHED_OUTPUTS)})"
# What it would have become, and what makes the name of a temporary folder or file its own.
_UNFINISHED = re.compile(
    rf"{re.escape(UNFINISHED)}{_OUTPUT}|\.{_OUTPUT}(?:[-.][a-z0-9_]{{8}}|\.tmp)"
)


@contextlib.contextmanager
def at_work(root: Path) -> Iterator[None]:
    """Be one of the steps that are at work below `root`; the first of them removes what steps that
    were killed left unfinished, and puts back what one of them was replacing.

    Whether another one is at work is the operating system's to say: its lock ends with its holder.
    """
    lock = root / paths.LOCKS / "steps.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a", encoding="utf-8") as file:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_unfinished(root)
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _remove_unfinished(root: Path) -> None:
    for copy in (root / paths.STATE).glob("champion-*/"):
        shutil.rmtree(copy)
    data = root / paths.POLICY.parent
    for folder in (data, *data.glob("reports"), *data.glob("reports/*/")):
        put_all_back(folder)
        for entry in folder.glob(".*"):
            if not _UNFINISHED.fullmatch(entry.name):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system that names no file name this one: writing to an open file does
    not know what it is called.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def in_place(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when the block ends well, else vanishes.

    Raises:
        PipelineError: weights could not be written, for want of space for instance.
    """
    try:
        with naming(folder), in_place_of(folder) as unfinished:
            yield unfinished
    except SafetensorError as error:  # its own kind of what Python calls an OSError
        raise PipelineError(
            f"{folder} could not be written: {error}; make room and start again: what was "
            "there before is as it was"
        ) from error
