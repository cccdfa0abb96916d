"""The code blocks of a Markdown page.

Owns what a block is and how a page says that one is not run. It does not know how blocks are run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The line that a page has right before a block that the tests leave out, for readers to see.
_NOT_RUN = re.compile(r"\*Not run by the tests: (?P<reason>.+)\.\*")
_FENCE = re.compile(r"(?P<indent> *)```(?P<language>[\w+-]*)(?: title=\"(?P<title>[^\"]+)\")?\s*")

PYTHON = ("python", "py", "python3")
SHELL = ("bash", "sh", "shell", "console", "zsh")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: `line` is the page's, counted from 1, on which its text begins.

    `not_run` is the page's reason for leaving it out; "" for a block that is run. `title` is the
    name of the file that the block shows; "" where it shows none.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run: str = ""
    title: str = ""

    @property
    def place(self) -> str:
        """As an editor opens it."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_blocks(page: Path) -> list[Block]:
    """Every fenced block in its order.

    Raises:
        ValueError: a fence that is never closed.
    """
    blocks: list[Block] = []
    opened: tuple[int, re.Match[str], str] | None = None  # the line after the fence, it, why not
    text: list[str] = []
    before = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.fullmatch(line)
        if opened is None and fence:
            marked = _NOT_RUN.fullmatch(before)
            opened = (number + 1, fence, marked["reason"] if marked else "")
            text = []
        elif opened is not None and line.strip() == "```":
            first, fence, reason = opened
            whole = "\n".join([*text, ""])
            title = fence["title"] or ""
            blocks.append(Block(page, first, fence["language"], whole, reason, title))
            opened = None
        elif opened is not None:
            text.append(line[len(opened[1]["indent"]) :])
        if line.strip():
            before = line.strip()
    if opened is not None:
        raise ValueError(f"{page}:{opened[0] - 1}: this block is never closed")
    return blocks


def pages() -> list[Path]:
    """The README and every page in docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
