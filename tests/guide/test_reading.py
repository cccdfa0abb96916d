"""How blocks are found in a page, and what is asked of a shell command that is not run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guide import shell
from tests.guide.pages import Block, read_blocks

PAGE = """# A page

*Not run by the tests: it needs two GPUs.*

```python
train()
```

```json title="prompts.json"
["Hello!"]
```

- in a list

  ```bash
  make test  # with a comment
  ```
"""


def test_a_block_knows_its_line_its_file_and_the_reason_for_leaving_it_out(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")

    assert read_blocks(page) == [
        Block(page, 6, "python", "train()\n", not_run="it needs two GPUs"),
        Block(page, 10, "json", '["Hello!"]\n', title="prompts.json"),
        Block(page, 16, "bash", "make test  # with a comment\n"),
    ]


def test_a_block_that_is_never_closed_is_told(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\ntrain()\n", encoding="utf-8")

    with pytest.raises(ValueError, match=r"page\.md:1: this block is never closed"):
        read_blocks(page)


def test_lines_are_read_as_a_shell_reads_them() -> None:
    text = "# a comment\nA=1 make test && \\\n  make lint  # both\n"

    found = list(shell.commands(Block(Path("page.md"), 1, "bash", text)))

    assert found == [["A=1", "make", "test"], ["make", "lint"]]


@pytest.mark.parametrize(
    "line",
    [
        "make",
        "make test-slow",
        "A=1 make bench PYTHON=python3.11",
        "python -m flows.promote --history",
        ".venv/bin/python -m benchmarks --only trl",
        "pip install stateset-agents[hpo,s3]",
        "infra/start_worker.sh",
        "python benchmarks/machine.py",
    ],
)
def test_a_command_that_names_what_is_there_is_fine(line: str) -> None:
    shell.check(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "make nothing",
        "python -m flows.nothing",
        "python -m flows.promote --nothing",
        "pip install stateset-agents[nothing]",
        "infra/nothing.sh",
        "python examples/nothing.py",
        "nothing --at all",
    ],
)
def test_a_command_that_names_what_is_not_there_fails(line: str) -> None:
    with pytest.raises((AssertionError, ModuleNotFoundError)):
        shell.check(line.split())
