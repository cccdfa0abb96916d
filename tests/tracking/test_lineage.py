"""A fingerprint changes when the data does, and only then."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from stateset_agents.tracking.lineage import collect_lineage, dvc_hashes, find_data, fingerprint


def test_a_fingerprint_knows_content_and_names_but_not_time_or_hidden_files(
    tmp_path: Path,
) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "x.txt").write_text("x")
    first = fingerprint(tmp_path / "a")
    inner = hashlib.sha256(b"x").hexdigest()
    assert first == hashlib.sha256(f"deep/x.txt\0{inner}\n".encode()).hexdigest()
    (tmp_path / "a" / ".gitignore").write_text("x")
    (tmp_path / "a" / "deep" / "x.txt").touch()
    assert fingerprint(tmp_path / "a") == first
    (tmp_path / "a" / "deep" / "x.txt").rename(tmp_path / "a" / "deep" / "y.txt")
    assert fingerprint(tmp_path / "a") != first
    assert fingerprint(tmp_path / "a" / "deep" / "y.txt") == inner


def _git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=root, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_run_says_which_code_and_which_data(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("1")
    (tmp_path / "dvc.lock").write_text("stages: {}\n")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", "data", "dvc.lock")
    _git(tmp_path, "commit", "-q", "-m", "first")
    tags = collect_lineage({"scenarios": Path("data"), "absent": Path("no")}, root=tmp_path)
    assert tags == {
        "git.revision": _git(tmp_path, "rev-parse", "HEAD"),
        "git.dirty": "false",
        "data.scenarios.path": "data",
        "data.scenarios.sha256": hashlib.sha256(b"1").hexdigest(),
    }
    (tmp_path / "dvc.lock").write_text("stages: {}\n\n")  # an earlier step of this line did
    assert collect_lineage({}, root=tmp_path)["git.dirty"] == "false"
    (tmp_path / "data").write_text("2")
    assert collect_lineage({}, root=tmp_path)["git.dirty"] == "true"


def test_what_has_a_fingerprint_is_found_where_it_was_or_in_dvcs_cache(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("1")
    one = hashlib.sha256(b"1").hexdigest()

    def found(md5: str = "") -> Path | None:
        return find_data("rows.jsonl", one, md5, root=tmp_path)

    assert found() == tmp_path / "rows.jsonl"
    (tmp_path / "rows.jsonl").write_text("2")
    assert found("abcd") is None
    cached = tmp_path / ".dvc/cache/files/md5/ab/cd"
    cached.parent.mkdir(parents=True)
    cached.write_text("1")
    assert found("abcd") == cached
    assert found() is None
    # a cache that lies elsewhere
    (tmp_path / ".dvc/config").write_text("[core]\n    autostage = false\n")
    (tmp_path / ".dvc/config.local").write_text("[cache]\n    dir = ../other\n")
    assert found("abcd") is None
    (tmp_path / "other/files/md5/ab").mkdir(parents=True)
    (tmp_path / "other/files/md5/ab/cd").write_text("1")
    assert found("abcd") == tmp_path / ".dvc/../other/files/md5/ab/cd"


def test_outside_a_checkout_the_image_says_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("STATESET_GIT_REVISION", raising=False)
    assert collect_lineage({}, root=tmp_path) == {}
    monkeypatch.setenv("STATESET_GIT_REVISION", "abc123")
    assert collect_lineage({}, root=tmp_path) == {"git.revision": "abc123", "git.dirty": "false"}


def test_dvc_hashes_come_from_the_stage_that_made_a_path_or_from_readers_that_agree(
    tmp_path: Path,
) -> None:
    (tmp_path / "dvc.lock").write_text(
        """
schema: '2.0'
stages:
  train:
    cmd: x
    deps:
    - {path: data/base, md5: stale, size: 1}
    - {path: data/scenarios, md5: old}
    - {path: data/preferences, md5: same}
  fetch:
    cmd: x
    outs:
    - {path: data/base, md5: made.dir}
  validate:
    cmd: x
    deps:
    - {path: data/scenarios, md5: new}
    - {path: data/preferences, md5: same}
"""
    )
    assert dvc_hashes(tmp_path) == {"data/base": "made.dir", "data/preferences": "same"}
    assert dvc_hashes(tmp_path / "nowhere") == {}
    tags = collect_lineage({"base_model": Path("data/base")}, root=tmp_path)
    assert tags["data.base_model.dvc_md5"] == "made.dir"
