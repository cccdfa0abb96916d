"""Files and folders in S3, or in a folder that stands in for it.

Owns the way of bytes to and from a store: multipart transfers, retries, and a SHA-256 of every
file, written beside it on the way up and compared on the way down. It does not know what the files
are. An S3 server other than Amazon's is named by AWS_ENDPOINT_URL; credentials and region come from
where boto3 finds them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from stateset_agents.exceptions import StorageError

_PART_BYTES = 16 * 1024 * 1024
_CHECKSUM = "sha256"  # the key in the object's metadata


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in a store: its key, relative to the store's location, and its size in bytes."""

    key: str
    size: int


class ArtifactStore(Protocol):
    """A place for files. Keys are relative, with forward slashes."""

    location: str

    def list_files(self, prefix: str = "") -> list[StoredFile]:
        """Files below a prefix (a folder's name, or "" for all), by key."""
        ...

    def upload_file(self, path: Path, key: str) -> None:
        """Put a file; one that is there is replaced at once or not at all."""
        ...

    def download_file(self, key: str, path: Path) -> None:
        """Get a file; `path` is the whole file or it is as it was."""
        ...

    def upload_folder(self, folder: Path, prefix: str = "") -> list[str]:
        """Put every file of a folder; the keys, in order."""
        ...

    def download_folder(self, prefix: str, folder: Path) -> list[Path]:
        """Get every file below a prefix; their paths, in order."""
        ...


def open_store(location: str) -> ArtifactStore:
    """The store at `s3://BUCKET[/PREFIX]`, or in a folder.

    Raises:
        StorageError: another scheme.
    """
    if location.startswith("s3://"):
        return S3Store(location)
    if "://" in location and not location.startswith("file://"):
        raise StorageError(f"artifact store {location!r}: allowed are s3://BUCKET/PREFIX or a path")
    return FolderStore(location.removeprefix("file://"))


def fetch_data(address: str, folder: Path) -> Path:
    """Bring the data file (`.jsonl`, `.json`) or the folder at `s3://BUCKET/KEY` below `folder`.

    Returns:
        Where it is now.

    Raises:
        StorageError: it cannot be had.
    """
    target = folder / "fetched" / address.removeprefix("s3://").strip("/")
    name = PurePosixPath(address).name
    if name.endswith((".jsonl", ".json")):
        target.parent.mkdir(parents=True, exist_ok=True)
        open_store(address.removesuffix(f"/{name}")).download_file(name, target)
    else:
        target.mkdir(parents=True, exist_ok=True)
        open_store(address).download_folder("", target)
    return target


class _Folders:
    """Folders, for any store that knows single files."""

    location: str

    def list_files(self, prefix: str = "") -> list[StoredFile]:
        raise NotImplementedError

    def upload_file(self, path: Path, key: str) -> None:
        raise NotImplementedError

    def download_file(self, key: str, path: Path) -> None:
        raise NotImplementedError

    def upload_folder(self, folder: Path, prefix: str = "") -> list[str]:
        """Put every file of a folder, hidden ones too; the keys, in order.

        Raises:
            StorageError: the folder is not there, or a file cannot be put.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise StorageError(f"artifact store {self.location}: {folder} is not a folder")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        keys = [_join(prefix, path.relative_to(folder).as_posix()) for path in files]
        for path, key in zip(files, keys, strict=True):
            self.upload_file(path, key)
        return keys

    def download_folder(self, prefix: str, folder: Path) -> list[Path]:
        """Get every file below a prefix into `folder`; their paths, in order.

        Raises:
            StorageError: nothing is there, or a file cannot be had or arrives damaged.
        """
        files = self.list_files(prefix)
        if not files:
            raise StorageError(
                f"artifact store {self.location}: nothing is stored at {_join(prefix) or 'it'}; "
                "check bucket and prefix"
            )
        start = f"{_join(prefix)}/" if _join(prefix) else ""
        paths = []
        for file in files:
            relative = PurePosixPath(file.key.removeprefix(start))
            if relative.is_absolute() or ".." in relative.parts:
                raise StorageError(
                    f"artifact store {self.location}: the key {file.key!r} leads out of the folder"
                )
            paths.append(Path(folder) / relative)
            self.download_file(file.key, paths[-1])
        return paths


class S3Store(_Folders):
    """A bucket, or a part of it. Safe to use from several threads."""

    def __init__(self, location: str) -> None:
        """`location`: s3://BUCKET or s3://BUCKET/PREFIX."""
        bucket, _, prefix = location.removeprefix("s3://").partition("/")
        if not bucket:
            raise StorageError(f"artifact store {location!r}: s3://BUCKET/PREFIX needs a bucket")
        self.location = location
        self._bucket = bucket
        self._prefix = prefix.strip("/")
        self._client, self._transfer = _s3_client(location)

    def list_files(self, prefix: str = "") -> list[StoredFile]:
        """Files below a prefix, by key.

        Raises:
            StorageError: the bucket is not there, or not for us.
        """
        start = _join(self._prefix, prefix)
        files = []
        with _attributed(self.location, f"list {prefix or 'the store'}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=f"{start}/" if start else ""
            )
            for page in pages:
                for entry in page.get("Contents", []):
                    # consoles make empty objects that stand for folders
                    if not entry["Key"].endswith("/"):
                        own = f"{self._prefix}/" if self._prefix else ""
                        key = entry["Key"].removeprefix(own)
                        files.append(StoredFile(key, int(entry["Size"])))
        return sorted(files, key=lambda file: file.key)

    def upload_file(self, path: Path, key: str) -> None:
        """Put a file, in parts of 16 MiB when it is larger.

        Raises:
            StorageError: S3 does not take it.
        """
        with _attributed(self.location, f"put {key}"):
            self._client.upload_file(
                str(path),
                self._bucket,
                _join(self._prefix, key),
                ExtraArgs={"Metadata": {_CHECKSUM: _sha256(Path(path))}},
                Config=self._transfer,
            )

    def download_file(self, key: str, path: Path) -> None:
        """Get a file and compare it with the checksum it was put with; a file that came there by
        other means is compared by its length.

        Raises:
            StorageError: it is not there, or what arrived is not what was put.
        """
        path = Path(path)
        full = _join(self._prefix, key)
        with _attributed(self.location, f"get {key}"), _beside(path) as temporary:
            head = self._client.head_object(Bucket=self._bucket, Key=full)
            self._client.download_file(self._bucket, full, str(temporary), Config=self._transfer)
            _compare(self.location, key, temporary, head)


class FolderStore(_Folders):
    """The same in a folder of this machine, or of a shared disk."""

    def __init__(self, location: str) -> None:
        self.location = str(location)
        self._root = Path(location)

    def list_files(self, prefix: str = "") -> list[StoredFile]:
        """Files below a prefix, by key."""
        start = self._root / _join(prefix)
        found = [path for path in start.rglob("*") if path.is_file()] if start.is_dir() else []
        files = [StoredFile(p.relative_to(self._root).as_posix(), p.stat().st_size) for p in found]
        return sorted(files, key=lambda file: file.key)

    def upload_file(self, path: Path, key: str) -> None:
        """Put a file.

        Raises:
            StorageError: it cannot be written.
        """
        self._copy(Path(path), self._root / _join(key), f"put {key}")

    def download_file(self, key: str, path: Path) -> None:
        """Get a file.

        Raises:
            StorageError: it is not there, or cannot be written.
        """
        self._copy(self._root / _join(key), Path(path), f"get {key}")

    def _copy(self, source: Path, target: Path, what: str) -> None:
        with _attributed(self.location, what), _beside(target) as temporary:
            shutil.copyfile(source, temporary)


def _s3_client(location: str) -> tuple[Any, Any]:
    try:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config
    except ImportError as error:
        raise StorageError(
            f"artifact store {location}: S3 needs boto3; pip install 'stateset-agents[s3]'"
        ) from error
    attempts = int(os.environ.get("AWS_MAX_ATTEMPTS", "5"))
    config = Config(
        retries={"mode": "standard", "max_attempts": attempts}, connect_timeout=5, read_timeout=60
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    # a client of its own session: boto3's default session is not made for several threads
    client = boto3.session.Session().client("s3", config=config, region_name=region or "us-east-1")
    transfer = TransferConfig(
        multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=8
    )
    return client, transfer


@contextlib.contextmanager
def _attributed(location: str, what: str) -> Iterator[None]:
    """boto3's and the system's errors, as ours, with what to do next."""
    if not location.startswith("s3://"):
        try:
            yield
        except OSError as error:
            raise StorageError(f"artifact store {location}: cannot {what}: {error}") from error
        return
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except NoCredentialsError as error:
        raise StorageError(
            f"artifact store {location}: cannot {what}: no credentials; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from error
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code"))
        raise StorageError(
            f"artifact store {location}: cannot {what}: {_MEANINGS.get(code, str(error))}"
        ) from error
    except (BotoCoreError, Boto3Error, OSError) as error:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        raise StorageError(
            f"artifact store {location}: cannot {what}: {error} (server: {endpoint or 'Amazon S3'};"
            " AWS_ENDPOINT_URL names another)"
        ) from error


_MEANINGS = {
    "404": "there is no such file",
    "NoSuchKey": "there is no such file",
    "NoSuchBucket": "there is no such bucket; create it, or check the name",
    "403": "access is denied; check the credentials and the bucket's policy",
    "AccessDenied": "access is denied; check the credentials and the bucket's policy",
    "InvalidAccessKeyId": "the access key is not known there; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY",
}


def _compare(location: str, key: str, path: Path, head: dict[str, Any]) -> None:
    expected = head.get("Metadata", {}).get(_CHECKSUM)
    if path.stat().st_size != int(head["ContentLength"]):
        raise StorageError(
            f"artifact store {location}: {key} arrived with {path.stat().st_size:,} of "
            f"{int(head['ContentLength']):,} bytes; run again"
        )
    if expected is not None and (found := _sha256(path)) != expected:
        raise StorageError(
            f"artifact store {location}: {key} is damaged: its SHA-256 is {found}, and it was put "
            f"with {expected}; put it again"
        )


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary file in the folder of `path` that takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".transfer-", dir=path.parent) as work:
        temporary = Path(work) / "file"
        yield temporary
        temporary.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _join(*parts: str) -> str:
    return "/".join(part.strip("/") for part in parts if part.strip("/"))
