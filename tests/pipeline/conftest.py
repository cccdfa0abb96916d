"""One small project in which the whole line has run, for every test that starts from there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline import project
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def roomy_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for a policy excerpt and five turns."""
    return make_tiny_model(tmp_path_factory.mktemp("roomy") / "model", max_positions=4096)


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory, roomy_tiny_model: Path) -> tuple[Path, str]:
    """The project after `python -m flows.retrain`, and what that printed."""
    folder = project.make_project(tmp_path_factory.mktemp("line") / "project", roomy_tiny_model)
    done = project.run(folder, "-m", "flows.retrain")
    assert done.returncode == 0, done.stdout
    return folder, done.stdout


@pytest.fixture
def line(first_run: tuple[Path, str]) -> Path:
    """The project in which the line has run; a test leaves it up to date."""
    return first_run[0]
