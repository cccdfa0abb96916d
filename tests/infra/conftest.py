"""Servers that the tests of this folder share: started once, ended with the session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.infra.servers import ObjectStore, Postgres, object_store, postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL; where none is installed the test is skipped, except in CI."""
    try:
        with postgres_server() as server:
            yield server
    except FileNotFoundError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{error} is missing: install PostgreSQL (apt-get install postgresql)")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A real S3 server."""
    with object_store(tmp_path_factory.mktemp("s3")) as store:
        yield store
