"""How a version in the model registry is named: `models:/NAME@ALIAS` or `models:/NAME/VERSION`, and
in a served answer, NAME/VERSION.

Owns these grammars for everything that reads such a name. It knows no registry: whether there is
such a version is for `registry` to find out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stateset_agents.exceptions import RegistryError

ALLOWED = "models:/NAME@ALIAS or models:/NAME/VERSION"
_DIGITS = 12  # of the weights' SHA-256 in an answer
# the names are those that MLflow takes, and the setting `tracking.registered_model` with it
_ADDRESS = re.compile(r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[\w.-]+)|/(?P<version>\d+))")


@dataclass(frozen=True, slots=True)
class VersionAddress:
    """A registered model's name and either an alias or the number of a version, as text."""

    name: str
    alias: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        return f"models:/{self.name}" + (f"@{self.alias}" if self.alias else f"/{self.version}")


def parse_address(text: str) -> VersionAddress:
    """Read an address.

    Raises:
        RegistryError: it is of neither form.
    """
    match = _ADDRESS.fullmatch(text)
    if not match:
        raise RegistryError(f"{text!r} names no version; allowed: {ALLOWED}")
    return VersionAddress(match["name"], match["alias"], match["version"])


@dataclass(frozen=True, slots=True)
class AnswerOrigin:
    """What a served answer says about itself. `weights` are the first digits of the SHA-256 of the
    version's files; "" where it was not said.
    """

    address: VersionAddress
    weights: str = ""


def parse_answer_ids(model: str, fingerprint: str = "") -> AnswerOrigin:
    """Read the ids of an answer, as `serving.served_model` writes them.

    Args:
        model: the answer's `model`, NAME/VERSION.
        fingerprint: its `system_fingerprint`, NAME-VERSION-DIGITS.

    Raises:
        RegistryError: they name no version of a registry, or two different ones.
    """
    named = re.fullmatch(r"([^/@:]+)/(\d+)", model)
    if not named or (len(named[2]) == _DIGITS and fingerprint.endswith(f"-{named[2]}")):
        raise RegistryError(
            f"model {model!r} is no NAME/VERSION of a registry: another server's answer, or one "
            "that serves a folder (--checkpoint), whose policy.json says where it comes from"
        )
    address = VersionAddress(named[1], version=named[2])
    if not fingerprint:
        return AnswerOrigin(address)
    start, _, weights = fingerprint.rpartition("-")
    if start != f"{named[1]}-{named[2]}" or not re.fullmatch(rf"[0-9a-f]{{{_DIGITS}}}", weights):
        raise RegistryError(
            f"model is {model!r} and system_fingerprint {fingerprint!r}; allowed is "
            f"{named[1]}-{named[2]}- and {_DIGITS} hexadecimal digits, as the server writes them"
        )
    return AnswerOrigin(address, weights)
