"""Which steps really ran, and how each ended: a line a step in `.stateset/steps.jsonl`.

DVC's return value does not tell a step that ran from one whose outputs came out of its cache, and
knows nothing of why a step failed; this does.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks import paths


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One run of one step.

    Attributes:
        step: its name.
        started: seconds since the epoch.
        seconds: how long it took.
        exit_code: 0, or 1 for an error.
        message: the error that the step found itself; empty when it found none.
    """

    step: str
    started: float
    seconds: float
    exit_code: int
    message: str = ""


def append(root: Path, record: StepRecord) -> None:
    """Write one line, in one piece.

    Raises:
        OSError: it cannot be written, for want of space for instance.
    """
    path = root / paths.STEP_HISTORY
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(asdict(record)) + "\n"
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # cut short: this record has a line of its own all the same
                line = f"\n{line}"
        file.write(line.encode())


def read(root: Path) -> list[StepRecord]:
    """All records, oldest first; none when no step ever ran here.

    A line that a full disk cut short is no record.
    """
    path = root / paths.STEP_HISTORY
    if not path.is_file():
        return []
    lines = path.read_text("utf-8").splitlines()
    records = []
    for line in lines:
        try:
            records.append(StepRecord(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return records


def last(root: Path, step: str, *, since: float) -> StepRecord | None:
    """The newest record of a step that started at or after `since`."""
    found = [record for record in read(root) if record.step == step and record.started >= since]
    return found[-1] if found else None
