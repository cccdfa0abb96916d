"""Where the reference values of outside code are; tests that need them skip without."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def load_reference(name: str) -> dict[str, Any]:
    """The values in `<name>.json` of STATESET_ORACLES, or of `../shared/oracles`."""
    named = os.environ.get("STATESET_ORACLES")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "oracles"
    file = folder / f"{name}.json"
    if not file.is_file():
        pytest.skip(f"no reference values: {file} is not there (STATESET_ORACLES names a folder)")
    values: dict[str, Any] = json.loads(file.read_text())
    return values
