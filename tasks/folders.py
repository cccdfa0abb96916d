"""Outputs that are whole or not there: written beside their place, moved when they are finished."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from stateset_agents.exceptions import PipelineError


@contextlib.contextmanager
def in_place(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when the block ends well, else vanishes.

    Raises:
        PipelineError: weights could not be written, for want of space for instance.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        unfinished = Path(temporary) / "new"
        unfinished.mkdir()
        try:
            yield unfinished
        except SafetensorError as error:  # its own kind of what Python calls an OSError
            raise PipelineError(
                f"{folder} could not be written: {error}; make room and start again: what was "
                "there before is as it was"
            ) from error
        if folder.exists():
            folder.rename(Path(temporary) / "replaced")
        unfinished.rename(folder)
