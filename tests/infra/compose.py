"""`infra/compose.yaml` as plain processes: the same commands and environment, loopback ports."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from tests.infra.servers import ROOT

COMPOSE = ROOT / "infra/compose.yaml"
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[?-])(?P<rest>[^}]*))?\}")


def load() -> dict[str, Any]:
    """The file with YAML's anchors and merges resolved, variables still in place."""
    content: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return content


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """Compose's `${NAME}`, `${NAME:-default}` and `${NAME:?message}` (missing: a KeyError)."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match["name"], match["kind"], match["rest"]
        if name in variables:
            return variables[name]
        if kind == "-":
            return str(rest)
        raise KeyError(f"{name}: {rest}")

    return _VARIABLE.sub(value, text)


@dataclass(frozen=True)
class ServiceProcess:
    """What the container would run."""

    command: list[str]
    env: dict[str, str]


def as_process(
    service: str, variables: Mapping[str, str], addresses: Mapping[str, str]
) -> ServiceProcess:
    """A service's command and environment with `addresses` ("postgres:5432" -> "127.0.0.1:40001",
    also for the bare ports a service listens on, as "0.0.0.0:9000" or "4200") put in."""
    definition = load()["services"][service]

    def resolve(value: object) -> str:
        text = interpolate(str(value), variables)
        if text in addresses:
            return addresses[text]
        for name, address in addresses.items():
            if ":" in name:
                text = text.replace(name, address)
        return text

    environment = definition.get("environment", {})
    return ServiceProcess(
        command=[resolve(part) for part in definition["command"]],
        env={name: resolve(value) for name, value in environment.items()},
    )
