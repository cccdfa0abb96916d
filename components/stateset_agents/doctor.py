"""What this machine has, and whether it is enough: `stateset-agents doctor`.

Owns the checks. Dependencies and their bounds are read from the installed package's own metadata.
Imports no torch unless a check needs it, and then only asks it for the devices.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.memory import memory_need, read_shape

DISTRIBUTION = "stateset-agents"
PORTS = {"serving": 8000, "MLflow page": 5000, "Prefect page": 4200}
MIN_MEMORY_GIB = 8.0
MIN_FREE_DISK_GIB = 10.0
GIB = 2**30


class Verdict(StrEnum):
    """How a check came out. A warning does not make `doctor` fail."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report: what was looked at, what was found, and what to do about it."""

    verdict: Verdict
    subject: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.verdict:<8} {self.subject:<14} {self.found}{advice}"


def examine(
    folder: Path, model: Path | None = None, train: TrainingConfig | None = None
) -> Iterator[Check]:
    """All checks, in the order of the report.

    Args:
        folder: where the line would work.
        model: the base model's folder, None where it is not known yet.
        train: the settings of the run that memory must be enough for; None: the defaults.
    """
    yield _check_python()
    yield from _check_dependencies()
    yield from _check_devices()
    yield check_memory(model, train or TrainingConfig(), machine_memory_gib())
    yield _check_disk(folder)
    for service, port in PORTS.items():
        yield check_port(service, port)


def _check_python() -> Check:
    found = sys.version.split()[0]
    try:
        wanted = importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"]
    except (importlib.metadata.PackageNotFoundError, KeyError):
        wanted = ""
    if not SpecifierSet(wanted).contains(found, prereleases=True):
        return Check(Verdict.PROBLEM, "Python", found, f"install one that is {wanted}")
    return Check(Verdict.OK, "Python", found)


def _check_dependencies() -> Iterator[Check]:
    try:
        texts = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Check(
            Verdict.PROBLEM, "dependencies", f"{DISTRIBUTION} is not installed", "run `make setup`"
        )
        return
    checks = [check_dependency(text) for text in texts]
    bad = [check for check in checks if check is not None]
    yield from bad
    if not bad:
        yield Check(Verdict.OK, "dependencies", "installed, and within their bounds")


def check_dependency(text: str) -> Check | None:
    """Hold one requirement, as in a package's metadata, against what is installed.

    None when all is well; what an extra needs may be missing, but not be out of bounds.
    """
    requirement = Requirement(text)
    is_needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    advice = f"run `pip install '{requirement.name}{requirement.specifier}'`"
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        if not is_needed:
            return None
        return Check(Verdict.PROBLEM, requirement.name, "is not installed", advice)
    if requirement.specifier.contains(version, prereleases=True):
        return None
    found = f"{version} is outside {requirement.specifier}"
    return Check(Verdict.PROBLEM, requirement.name, found, advice)


def machine_memory_gib() -> float:
    """What a run would compute in: the first GPU's memory, else the processor's. GiB."""
    torch = _torch()
    if torch is not None and torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory) / GIB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def check_memory(model: Path | None, train: TrainingConfig, gib: float) -> Check:
    """What the configured run needs against the `gib` that are there."""
    shape = read_shape(model) if model is not None else None
    if shape is None:
        where = model or "base_model.source"
        if gib < MIN_MEMORY_GIB:
            needs = f"the default line needs {MIN_MEMORY_GIB:.0f} GiB"
            return Check(Verdict.WARNING, "memory", f"{gib:.1f} GiB", needs)
        found = f"{gib:.1f} GiB; what the model needs is known once it is fetched ({where})"
        return Check(Verdict.OK, "memory", found)
    torch = _torch()
    on_gpu = torch is not None and torch.cuda.is_available()
    need = memory_need(shape, train, bf16=_has_bfloat16(), packs_weights=not on_gpu)
    parts = ", ".join(
        f"{name} {getattr(need, name) / GIB:.1f}"
        for name in ("weights", "optimizer", "conversations", "activations", "critic")
        if getattr(need, name)
    )
    found = (
        f"{gib:.1f} GiB; training {model} ({shape.parameters / 1e6:,.0f} million parameters) needs "
        f"about {need.total / GIB:.1f} ({parts})"
    )
    if need.total <= gib * GIB:
        return Check(Verdict.OK, "memory", found)
    advice = "set train.use_lora, or lower " + (
        "train.micro_batch_tokens"
        if need.activations > need.conversations
        else "train.max_completion_length or train.num_generations"
    )
    return Check(Verdict.PROBLEM, "memory", found, advice)


def _check_disk(folder: Path) -> Check:
    gib = shutil.disk_usage(folder).free / GIB
    found = f"{gib:.1f} GiB free"
    if gib < MIN_FREE_DISK_GIB:
        return Check(
            Verdict.WARNING,
            "disk",
            found,
            f"models, DVC's cache and checkpoints want {MIN_FREE_DISK_GIB:.0f} GiB",
        )
    return Check(Verdict.OK, "disk", found)


def _torch() -> Any:
    """The module, None where it cannot be imported: `_check_devices` says why."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def _check_devices() -> Iterator[Check]:
    try:
        import torch
    except ImportError as error:
        yield Check(Verdict.PROBLEM, "torch", f"cannot be imported: {error}", "run `make setup`")
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / GIB
            name = torch.cuda.get_device_name(index)
            yield Check(Verdict.OK, f"GPU {index}", f"{name}, {memory:.0f} GiB")
    else:
        cores = os.cpu_count()
        yield Check(Verdict.OK, "GPU", f"none; training runs on the processor, {cores} cores")
    if _has_bfloat16():
        yield Check(Verdict.OK, "bfloat16", "computed by the hardware")
    else:
        yield Check(
            Verdict.WARNING,
            "bfloat16",
            "emulated in software, slowly",
            "set `bf16: false` and `dtype: float32` in params.yaml",
        )


def _has_bfloat16() -> bool:
    torch = _torch()
    if torch is not None and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return _processor_has_bfloat16()


def _processor_has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def check_port(service: str, port: int) -> Check:
    """Whether a service of this project could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return Check(
                Verdict.WARNING,
                f"port {port}",
                f"is in use, and the {service} would take it",
                "end what holds it, or give another port",
            )
    return Check(Verdict.OK, f"port {port}", f"free for the {service}")
