"""Preference pairs in TRL's conversational form.

Owns the check of what a user gives. It does not know TRL: the form is a plain list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from stateset_agents.data.schemas import PreferencePair
from stateset_agents.exceptions import DataError


def conversational_rows(
    pairs: Iterable[PreferencePair | Mapping[str, Any]],
) -> list[dict[str, list[dict[str, str]]]]:
    """`prompt`, `chosen` and `rejected`, lists of messages each.

    A pair that is a mapping may have texts in their place: what the user says, and two answers.

    Raises:
        DataError: there is none, or what is wrong with each that is not a pair.
    """
    rows, problems = [], []
    for number, given in enumerate(pairs):
        try:
            pair = given if isinstance(given, PreferencePair) else _pair(number, given)
        except (ValidationError, TypeError, KeyError) as error:
            problems.append(f"pair {number}: {_told(error)}")
            continue
        rows.append(
            {
                part: [
                    {"role": message.role, "content": message.content}
                    for message in getattr(pair, part)
                ]
                for part in ("prompt", "chosen", "rejected")
            }
        )
    if not rows and not problems:
        problems.append("there are no preference pairs: give at least one")
    if problems:
        raise DataError(problems)
    return rows


def _pair(number: int, given: Mapping[str, Any]) -> PreferencePair:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    parts = {
        part: [{"role": role, "content": given[part]}]
        if isinstance(given[part], str)
        else given[part]
        for part, role in roles.items()
    }
    return PreferencePair(id=str(given.get("id", f"pair-{number}")), **parts)


def _told(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"has no {error}; a pair has prompt, chosen and rejected"
    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(map(str, one['loc']))} {one['msg']}".strip() for one in error.errors()
        )
    return str(error)
