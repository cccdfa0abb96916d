"""A page, run: its blocks in order, in one namespace and one folder.

Owns how a block of each language is carried out. It does not know which pages there are, nor what
is held against a command that is not run (`shell.py`).
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.guide import command_line, shell
from tests.guide.pages import PYTHON, SHELL, Block
from tests.guide.scaling import scaled


class PageRun:
    """What the blocks of one page share.

    Args:
        folder: the working folder; files that the page shows with a title are written there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self._runner = asyncio.Runner()

    def close(self) -> None:
        """End what awaits."""
        self._runner.close()

    def run(self, block: Block) -> None:
        """Carry out one block; a block of another language is a file, or for reading only."""
        if block.title:
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        if block.language in PYTHON:
            self._run_python(block)
        elif block.language in SHELL:
            for words in shell.commands(block):
                self._run_command(words)

    def _run_python(self, block: Block) -> None:
        """With the page's own line numbers, so that a traceback points at the page."""
        tree = ast.increment_lineno(scaled(block.text), block.line - 1)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(tree, str(block.page), "exec", flags=flags)
        if code.co_flags & inspect.CO_COROUTINE:
            self._runner.run(_awaited(code, self.namespace))
        else:
            exec(code, self.namespace)

    def _run_command(self, words: Sequence[str]) -> None:
        words = shell.without_assignments([os.path.expandvars(word) for word in words])
        if words and words[0] == "stateset-agents":
            command_line.run(words[1:])
        else:
            shell.check(words)


async def _awaited(code: Any, namespace: dict[str, Any]) -> None:
    await eval(code, namespace)
