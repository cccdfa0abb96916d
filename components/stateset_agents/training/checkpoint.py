"""Checkpoints: all that a run needs to go on as if it had never stopped.

Owns their layout on disk, how they get there whole or not at all, and whether one belongs to a run.
It does not know what the trainer keeps in them. Nothing is pickled: tensors are safetensors, the
rest is JSON, so loading a checkpoint never runs code.

    <folder>/step_120/weights.safetensors     what is trained: adapter or master weights
    <folder>/step_120/optimizer.safetensors   AdamW's state
    <folder>/step_120/state.json              step, fingerprint, random states, callbacks, best,
                                              conversations that were played a step ahead
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stateset_agents.exceptions import CheckpointError
from stateset_agents.tracking.whole_folder import UNFINISHED, in_place_of, put_all_back, put_back

_PREFIX = "step_"


@dataclass(slots=True)
class Checkpoint:
    """One moment of a run.

    Attributes:
        step: batches of conversations done.
        fingerprint: digests of what decides the run (configuration, scenarios, base model, ...).
        weights: the trainable parameters by name, float32.
        optimizer: its tensors, `<parameter>.<entry>`.
        state: what else must survive, JSON-serialisable.
    """

    step: int
    fingerprint: dict[str, str]
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write `folder/step_<n>`, on the disk for good before it gets its name, in the place of one
    that has it; of those up to step n drop all but the newest `keep`. Later ones are another run's,
    and not this one's to drop.

    Raises:
        CheckpointError: it could not be written, for want of space or otherwise. Nothing of it is
            left, and the checkpoints before it are as they were.
    """
    target = folder / f"{_PREFIX}{checkpoint.step}"
    needed = _size(checkpoint)
    _check_state(checkpoint)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
        with in_place_of(target) as unfinished:
            _write(unfinished, checkpoint)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: the checkpoint of step {checkpoint.step} needs {needed:,} bytes and could "
            f"not be written ({error}); {_free(folder)} bytes are free. Earlier checkpoints are "
            "whole: make room and start again, and training goes on from the last one"
        ) from error
    finished = _checkpoints(folder)
    for old in finished[: finished.index(target) + 1][:-keep]:
        _discard(old)
    return target


def _check_state(checkpoint: Checkpoint) -> None:
    """Before anything is written: what JSON cannot hold, by the callback that gave it."""
    given = {
        f"callback {name!r}": state for name, state in checkpoint.state.get("callbacks", {}).items()
    }
    for who, state in {**given, "the trainer": checkpoint.state}.items():
        try:
            json.dumps(state)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"the state of {who} cannot be written to a checkpoint ({error}); allowed is what "
                "JSON holds: mappings with text keys, lists, text, numbers, true, false, null"
            ) from error


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest finished checkpoint in a folder, None if there is none."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def load_checkpoint(path: Path, fingerprint: Mapping[str, str]) -> Checkpoint:
    """Read a checkpoint (a `step_<n>` folder, or this run's newest one in a folder of them).

    Raises:
        CheckpointError: there is none, it cannot be read, or its fingerprint is another run's.
    """
    put_back(path)
    chosen = path if (path / "state.json").is_file() else _newest_of_run(path, fingerprint)
    if chosen is None:
        raise CheckpointError(_no_checkpoint(path))
    try:
        state = json.loads((chosen / "state.json").read_text())
        checkpoint = Checkpoint(
            step=state.pop("step"),
            fingerprint=state.pop("fingerprint"),
            weights=load_file(chosen / "weights.safetensors"),
            optimizer=load_file(chosen / "optimizer.safetensors"),
            state=state,
        )
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{chosen} is damaged ({type(error).__name__}: {error}): remove it, and training goes "
            "on from the one before it, or from the start"
        ) from error
    differing = differing_parts(checkpoint.fingerprint, fingerprint)
    if differing:
        raise CheckpointError(
            f"{chosen} belongs to another run: {', '.join(differing)} differ. Resume with what it "
            "was made with, or remove the checkpoint to start anew"
        )
    return checkpoint


def _no_checkpoint(path: Path) -> str:
    allowed = "name a folder step_<n> with a state.json, or the folder that such folders are in"
    if not path.is_dir():
        return f"there is no folder {path} to resume from: {allowed}"
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        beside = latest_checkpoint(path.parent)
        found = f", such as {beside}" if beside else ""
        return (
            f"{path} holds a policy without what a run needs to go on (optimizer, random states): "
            f"{allowed}{found}; to train it further from the start, name it as the agent's model"
        )
    return f"{path} holds no checkpoint: {allowed}"


def differing_parts(saved: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """Which parts of two fingerprints are not the same, by name."""
    return sorted(part for part in {*saved, *current} if saved.get(part) != current.get(part))


def matches(path: Path, fingerprint: Mapping[str, str]) -> bool:
    """True when the checkpoint at `path` can be read and belongs to the run of `fingerprint`."""
    saved = _fingerprint_of(path)
    return saved is not None and not differing_parts(saved, fingerprint)


def digest(value: Any) -> str:
    """A short digest of anything that JSON can write; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_weights(model: torch.nn.Module, samples: int = 1024) -> str:
    """A digest of a model by its parameters' names, shapes, types and `samples` values of each,
    evenly spread: it tells base models apart without reading all of a large one.
    """
    sha = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        spread = flat[:: max(1, len(flat) // samples)].to("cpu", torch.float32)
        sha.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        sha.update(spread.numpy().tobytes())
    return sha.hexdigest()[:16]


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    save_file(_contiguous(checkpoint.weights), folder / "weights.safetensors")
    save_file(_contiguous(checkpoint.optimizer), folder / "optimizer.safetensors")
    state = {
        "step": checkpoint.step,
        "fingerprint": checkpoint.fingerprint,
        **checkpoint.state,
    }
    (folder / "state.json").write_text(json.dumps(state))
    for file in folder.iterdir():
        _sync(file)
    _sync(folder)


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checkpoints(folder: Path) -> list[Path]:
    """Finished ones, oldest first."""
    if not folder.is_dir():
        return []
    put_all_back(folder)
    numbered = [
        (int(path.name.removeprefix(_PREFIX)), path)
        for path in folder.glob(f"{_PREFIX}*")
        if path.name.removeprefix(_PREFIX).isdecimal() and (path / "state.json").is_file()
    ]
    return [path for _, path in sorted(numbered)]


def _newest_of_run(folder: Path, fingerprint: Mapping[str, str]) -> Path | None:
    """The newest that is not known to be another run's; failing that the newest, to be named."""
    found = _checkpoints(folder)
    own = []
    for path in found:
        saved = _fingerprint_of(path)
        if saved is None or not differing_parts(saved, fingerprint):
            own.append(path)
    return next(reversed(own or found), None)


def _fingerprint_of(path: Path) -> dict[str, str] | None:
    """None where it cannot be read."""
    try:
        state = json.loads((path / "state.json").read_text())
        return dict(state.get("fingerprint", {}))
    except (OSError, ValueError):
        return None


def _discard(path: Path) -> None:
    """Take its name away first: killed in between, no half checkpoint is left under it."""
    nameless = path.with_name(f"{UNFINISHED}{path.name}-{os.getpid()}")
    path.rename(nameless)
    shutil.rmtree(nameless)


def _remove_unfinished(folder: Path) -> None:
    """What a killed run was writing or removing; one run writes to a folder at a time."""
    for left in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left)


def _size(checkpoint: Checkpoint) -> int:
    tensors = [*checkpoint.weights.values(), *checkpoint.optimizer.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _free(folder: Path) -> str:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return f"{shutil.disk_usage(existing).free:,}"
