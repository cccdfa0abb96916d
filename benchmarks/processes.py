"""A side of a comparison is a process of its own, so that its peak memory is its own.

Owns the conversation between the two: the parent asks for a step, the child does it and answers
with numbers. The parent decides the order, so that sides can be measured in alternation; between
its steps a child sleeps. It does not know what a step is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Numbers = dict[str, Any]

# Nothing is fetched while something is measured, and no tokenizer's threads take the cores.
_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


class Side:
    """The parent's end of a child that runs `python -m MODULE SETTINGS`.

    Use it as a context manager: leaving it ends the child.
    """

    def __init__(
        self,
        module: str,
        settings: Mapping[str, Any],
        *,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the child, with `environment` beside this process's; it answers once when it is
        ready, see `ready`.
        """
        self.module = module
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - close() closes it
        self._child = subprocess.Popen(
            [python, "-m", module, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, **_ENVIRONMENT, **(environment or {})},
        )
        try:
            self.ready = self._read()
            """What the child said of itself when it was ready."""
        except BaseException:
            self.close()
            raise

    def step(self, **request: Any) -> Numbers:
        """Ask for one step and wait for its numbers.

        Raises:
            RuntimeError: the child ended; its last words are in the message.
        """
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(request) + "\n")
        self._child.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the child and wait for it."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        try:
            self._child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()
        self._errors.close()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> Numbers:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._child.wait()
            self._errors.seek(0)
            said = self._errors.read()[-2000:]
            raise RuntimeError(f"{self.module} ended with {self._child.returncode}:\n{said}")
        answer: Numbers = json.loads(line)
        return answer


class Requests:
    """The child's end. What libraries print goes to standard error from now on."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        self._cpu_seconds = 0.0
        os.dup2(2, 1)

    @staticmethod
    def settings() -> Numbers:
        """What the parent started this process with."""
        given: Numbers = json.loads(sys.argv[1])
        return given

    def wait(self) -> Numbers | None:
        """The next request; None when there will be no more."""
        line = sys.stdin.readline()
        if not line:
            return None
        request: Numbers = json.loads(line)
        self._cpu_seconds = time.process_time()
        return request

    def answer(self, numbers: Mapping[str, Any]) -> None:
        """Answer the request; added are the processor seconds it took, all threads together, and
        the peak memory so far, of this process and on the accelerator if it used one.
        """
        cpu_seconds = time.process_time() - self._cpu_seconds
        added = {"cpu_seconds": cpu_seconds, "peak_bytes": peak_bytes()}
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            added["accelerator_peak_bytes"] = torch.cuda.max_memory_allocated()
        json.dump({**numbers, **added}, self._answers)
        self._answers.write("\n")
        self._answers.flush()


def peak_bytes() -> int:
    """The most memory this process has had (`VmHWM`).

    `getrusage` would not do: what a process had before `exec` counts in it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM: this system does not report peak memory")
