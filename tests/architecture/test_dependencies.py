"""What pyproject.toml allows to be installed, and what constraints.txt installs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
GROUPS: dict[str, list[str]] = {"dependencies": PROJECT["dependencies"], **EXTRAS}
DATED = {"packaging"}  # a year and a number: the first of them says nothing of a break


def _requirements(group: str) -> list[Requirement]:
    found = [Requirement(line) for line in GROUPS[group]]
    return [one for one in found if one.name != PROJECT["name"]]


@pytest.mark.parametrize("group", sorted(set(GROUPS) - {"dev"}))
def test_every_dependency_of_a_user_ends_before_a_version_that_may_break_it(group: str) -> None:
    open_ended = [
        one.name
        for one in _requirements(group)
        if not {"<", "==", "~="} & {part.operator for part in one.specifier}
    ]
    assert set(open_ended) <= DATED


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_the_set_that_is_installed_is_within_what_is_allowed(group: str) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    outside = [
        f"{one}: {pin}"
        for one in _requirements(group)
        if (pin := pins.get(canonicalize_name(one.name)))
        and not one.specifier.contains(pin.split(";")[0].strip(), prereleases=True)
    ]
    assert outside == []
