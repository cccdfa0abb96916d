"""A version's address means the same to everything that reads one."""

from __future__ import annotations

import pytest

from stateset_agents.exceptions import ModelSourceError, RegistryError
from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.model_sources import parse_source
from stateset_agents.tracking.registry import find_version
from stateset_agents.tracking.version_address import VersionAddress, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("models:/agent@champion", VersionAddress("agent", alias="champion")),
        ("models:/agent/12", VersionAddress("agent", version="12")),
        ("models:/our agent@v-1.0", VersionAddress("our agent", alias="v-1.0")),
    ],
)
def test_an_address_is_read_and_written_alike(text: str, address: VersionAddress) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["models:/a:b@champion", "models:/agent", "models:/agent/Production", "models:/a/b@c",
     "models:/agent@", "models:agent/1"],
)  # fmt: skip
def test_what_is_no_address_is_none_in_the_registry_and_none_as_a_source(
    tracking: TrackingConfig, text: str
) -> None:
    told = r"names no version; allowed: models:/NAME@ALIAS or models:/NAME/VERSION"
    with pytest.raises(RegistryError, match=told):
        find_version(tracking, text)
    with pytest.raises(ModelSourceError, match=told):
        parse_source(text)
