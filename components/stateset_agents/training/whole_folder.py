"""A folder that is whole or not there: written beside its place and renamed. Knows no contents."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from stateset_agents.exceptions import CheckpointError


def replace_folder(target: Path, write: Callable[[Path], None]) -> Path:
    """Call `write` with an empty folder and give it the name `target` when that went well.

    Raises:
        CheckpointError: the disk did not take it; what was there before is as it was.
    """
    unfinished = target.with_name(f".unfinished-{target.name}-{os.getpid()}")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(unfinished)
        if target.exists():
            old = target.with_name(f".unfinished-old-{target.name}-{os.getpid()}")
            target.rename(old)
            unfinished.rename(target)
            shutil.rmtree(old)
        else:
            unfinished.rename(target)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(
            f"{target} could not be written: {error}; make room, or give another folder"
        ) from error
    return target
