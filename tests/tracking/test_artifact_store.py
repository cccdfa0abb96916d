"""What is put into a store comes back the same, or an error says what happened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stateset_agents.exceptions import StorageError
from stateset_agents.tracking.artifact_store import open_store


@pytest.fixture(params=["s3", "folder"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"s3://{request.getfixturevalue('bucket')}/a/prefix"
    return str(tmp_path / "store")


def test_a_folder_comes_back_as_it_was(location: str, tmp_path: Path) -> None:
    # larger than one part of 16 MiB, so that S3 gets and gives it in several
    content = {"big.bin": os.urandom(17 * 2**20), "deep/er/small.txt": b"x", "empty": b""}
    for name, data in content.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    store = open_store(location)
    assert store.upload_folder(tmp_path / "in", "run 1") == [f"run 1/{n}" for n in sorted(content)]
    assert {file.key: file.size for file in store.list_files("run 1")} == {
        f"run 1/{name}": len(data) for name, data in content.items()
    }
    store.download_folder("run 1", tmp_path / "out")
    found = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert found == content


def test_a_prefix_does_not_match_half_a_name(location: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store = open_store(location)
    store.upload_file(tmp_path / "file", "model/a")
    store.upload_file(tmp_path / "file", "model-2/b")
    assert [file.key for file in store.list_files("model")] == ["model/a"]


def test_a_file_that_is_not_there_is_named_and_nothing_is_written(
    location: str, tmp_path: Path
) -> None:
    target = tmp_path / "target" / "file"
    with pytest.raises(StorageError, match=r"cannot get no/such\.bin: "):
        open_store(location).download_file("no/such.bin", target)
    assert list(target.parent.iterdir()) == []


def test_a_file_that_was_damaged_in_the_store_is_refused(bucket: str, tmp_path: Path) -> None:
    import boto3

    (tmp_path / "file").write_bytes(b"right")
    store = open_store(f"s3://{bucket}")
    store.upload_file(tmp_path / "file", "file")
    client = boto3.session.Session().client("s3")
    metadata = client.head_object(Bucket=bucket, Key="file")["Metadata"]
    client.put_object(Bucket=bucket, Key="file", Body=b"wrong", Metadata=metadata)
    with pytest.raises(StorageError, match="file is damaged: its SHA-256 is"):
        store.download_file("file", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_not_there_is_named() -> None:
    with pytest.raises(
        StorageError, match="s3://absent: cannot list the store: there is no such b"
    ):
        open_store("s3://absent").list_files()


@pytest.mark.usefixtures("bucket")
def test_a_server_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageError, match=r"server: http://127\.0\.0\.1:1; AWS_ENDPOINT_URL"):
        open_store("s3://models").download_file("file", tmp_path / "file")


def test_a_key_that_leads_out_of_the_folder_is_refused(bucket: str, tmp_path: Path) -> None:
    import boto3

    boto3.session.Session().client("s3").put_object(Bucket=bucket, Key="m/../../x", Body=b"")
    with pytest.raises(StorageError, match="leads out of the folder"):
        open_store(f"s3://{bucket}").download_folder("m", tmp_path / "out")


def test_another_scheme_is_refused() -> None:
    with pytest.raises(StorageError, match="allowed are s3://BUCKET/PREFIX or a path"):
        open_store("ftp://somewhere/else")
