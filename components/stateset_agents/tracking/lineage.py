"""Which code and which data: what a run and a model version must say about their origins.

Owns fingerprints of folders and of the code's revision, and the way back from a fingerprint to
what has it. It does not know MLflow, nor where the project keeps its files: the steps hand in names
and paths.

Tags: `git.revision`, `git.dirty`, and for every named path `data.NAME.path`, `data.NAME.sha256`
(this module's own digest) and, where dvc.lock knows the path, `data.NAME.dvc_md5` (the name under
which DVC's cache and remote keep it).
"""

from __future__ import annotations

import configparser
import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import yaml


def collect_lineage(data: Mapping[str, Path], *, root: Path = Path()) -> dict[str, str]:
    """The tags for everything in `data` that exists, and for the code in `root`."""
    tags = code_revision(root)
    recorded = dvc_hashes(root)
    for name, path in data.items():
        if (root / path).exists():
            tags[f"data.{name}.path"] = path.as_posix()
            tags[f"data.{name}.sha256"] = fingerprint(root / path)
        if path.as_posix() in recorded:
            tags[f"data.{name}.dvc_md5"] = recorded[path.as_posix()]
    return tags


def fingerprint(path: Path) -> str:
    """SHA-256 over a file, or over a folder's files: each one's relative name and own SHA-256, in
    the order of the names. Hidden files do not count. Hexadecimal.
    """
    if path.is_file():
        return _file_digest(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in relative.parts):
            digest.update(f"{relative.as_posix()}\0{_file_digest(file)}\n".encode())
    return digest.hexdigest()


def find_data(path: str, sha256: str, dvc_md5: str = "", *, root: Path = Path()) -> Path | None:
    """Where this machine has what had that fingerprint: at its path, if it is still the same there,
    or in DVC's cache (files alone: the cache keeps a folder in pieces). None: in neither.
    """
    places = [root / path]
    if dvc_md5 and not dvc_md5.endswith(".dir"):
        places.append(_dvc_cache(root) / "files" / "md5" / dvc_md5[:2] / dvc_md5[2:])
    for place in places:
        if place.exists() and fingerprint(place) == sha256:
            return place
    return None


def _dvc_cache(root: Path) -> Path:
    """As `cache.dir` of DVC's settings names it, relative to their own folder."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read([root / ".dvc" / "config", root / ".dvc" / "config.local"], encoding="utf-8")
    return root / ".dvc" / settings.get("cache", "dir", fallback="cache")


def code_revision(root: Path = Path()) -> dict[str, str]:
    """`git.revision` and `git.dirty` ("true" where a tracked file differs from it; dvc.lock does
    not count: each step of the line changes it, and what it says is in the tags of the data).

    Outside a git checkout (a container image) there is none; STATESET_GIT_REVISION, set when the
    image was built, stands in.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=root, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    revision = git("rev-parse", "HEAD")
    if revision is None:
        named = os.environ.get("STATESET_GIT_REVISION")
        return {"git.revision": named, "git.dirty": "false"} if named else {}
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude)dvc.lock")
    return {"git.revision": revision, "git.dirty": "true" if changed else "false"}


def dvc_hashes(root: Path = Path()) -> dict[str, str]:
    """Path to hash, as dvc.lock has them; {} without the file.

    A path that several stages name with different hashes is left out, unless one of them made it:
    the others have not run since it changed.
    """
    lock = root / "dvc.lock"
    if not lock.is_file():
        return {}
    stages = (yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages", {})
    read: dict[str, set[str]] = {}
    made: dict[str, str] = {}
    for stage in stages.values():
        for entry in stage.get("deps", []):
            read.setdefault(entry["path"], set()).add(entry.get("md5", ""))
        made |= {entry["path"]: entry.get("md5", "") for entry in stage.get("outs", [])}
    agreed = {path: hashes.pop() for path, hashes in read.items() if len(hashes) == 1}
    return {path: md5 for path, md5 in (agreed | made).items() if md5}


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
