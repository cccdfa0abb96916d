"""What is asked of one run of benchmarks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import BASE_MODEL


@dataclass(frozen=True)
class Run:
    """Settings shared by all benchmarks.

    Attributes:
        model: the folder of the model under test.
        quick: small shapes and one sample, for tests: its numbers mean nothing.
    """

    model: Path = BASE_MODEL
    quick: bool = False

    @property
    def folder(self) -> str:
        """The model's folder, as processes are told it."""
        return str(self.model)


def vllm_python() -> Path:
    """The interpreter of vLLM's own environment: `make bench-vllm-env` makes it, and
    `STATESET_VLLM_PYTHON` names another.
    """
    named = os.environ.get("STATESET_VLLM_PYTHON")
    return Path(named) if named else Path(__file__).parent / ".venv-vllm" / "bin" / "python"
