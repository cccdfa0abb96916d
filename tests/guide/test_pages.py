"""Every block of the README and of docs/ runs, in the order in which a page has them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guide.models import make_models_dir
from tests.guide.pages import PYTHON, ROOT, SHELL, Block, pages, read_blocks
from tests.guide.running import PageRun

# Blocks that a page leaves out by saying so right before them: the page, and its reason.
NOT_RUN: list[tuple[str, str]] = [
    ("docs/RL_FRAMEWORK_GUIDE.md", "it needs four GPUs"),
    ("docs/RL_FRAMEWORK_GUIDE.md", "it needs the extra `trl`, and runs on its own page"),
]
# Every kind of training and a server, one after the other: minutes.
SLOW = ("RL_FRAMEWORK_GUIDE.md",)

RUN = (*PYTHON, *SHELL)
BLOCKS = {page: read_blocks(page) for page in pages()}
WITH_CODE = [page for page, blocks in BLOCKS.items() if any(one.language in RUN for one in blocks)]


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models_dir(tmp_path_factory.mktemp("models"))


@pytest.fixture
def page_run(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PageRun]:
    """A folder of its own; what a page does to the process is undone after it."""
    monkeypatch.setenv("STATESET_MODELS_DIR", str(models_dir))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("API_KEY", "a-key-of-the-tests")
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)
    loggers = [logging.getLogger(name) for name in (None, "stateset_agents")]
    before = [(one.level, list(one.handlers)) for one in loggers]
    run = PageRun(tmp_path)
    try:
        yield run
    finally:
        run.close()
        os.environ.clear()
        os.environ.update(environment)
        for logger, (level, handlers) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.handlers[:] = handlers


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page.name in SLOW else [])
        for page in WITH_CODE
    ],
    ids=lambda page: page.name,
)
def test_every_block_of_the_page_runs(page: Path, page_run: PageRun) -> None:
    for block in BLOCKS[page]:
        if not block.not_run:
            page_run.run(block)


def test_blocks_that_are_not_run_are_these_and_say_why() -> None:
    blocks: list[Block] = [block for page in BLOCKS for block in BLOCKS[page]]
    left_out = [
        (str(block.page.relative_to(ROOT)), block.not_run) for block in blocks if block.not_run
    ]
    assert left_out == NOT_RUN


def test_every_block_says_its_language() -> None:
    """A fence without one would be neither run nor looked at, except a drawing."""
    known = (*RUN, "", "text", "json", "jsonl", "yaml", "mermaid")
    assert [
        one.place for blocks in BLOCKS.values() for one in blocks if one.language not in known
    ] == []
    code = ("import ", "await ", "stateset-agents ", "make ")
    bare = [one for blocks in BLOCKS.values() for one in blocks if not one.language]
    assert [
        one.place for one in bare if any(line.startswith(code) for line in one.text.splitlines())
    ] == []
