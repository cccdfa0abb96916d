"""Outputs that are whole or not there: written beside their place, moved when they are finished."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def in_place(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when the block ends well, else vanishes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        unfinished = Path(temporary) / "new"
        unfinished.mkdir()
        yield unfinished
        if folder.exists():
            folder.rename(Path(temporary) / "replaced")
        unfinished.rename(folder)
