"""Where and with what a result was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
BASE_MODEL = PROJECT / "data" / "base_model"

_PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "stateset-agents")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, and the accelerator if there is one."""
    import torch

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_bytes": pages,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "load_before": os.getloadavg()[0],
    }


def describe_versions() -> dict[str, str]:
    """Python and the packages that the figures depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe_revision() -> dict[str, Any]:
    """The commit that was measured, and whether files differed from it (results do not count)."""
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results")
    return {"commit": commit or None, "changed": bool(changed)}


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor()
