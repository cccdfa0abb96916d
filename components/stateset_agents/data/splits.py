"""Which part of the data an intent belongs to: one file decides, and whole intents move.

Owns `intents.yaml` and how scenarios get their split. Splitting by whole intents is what makes the
held-out part a test of matters never trained on, not of other words for the same matter.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from stateset_agents.data.readers import describe
from stateset_agents.data.schemas import Name, PreferencePair, Scenario, Split
from stateset_agents.exceptions import DataError

SPLITS: tuple[Split, ...] = ("train", "validation", "heldout")

# An unlisted name at least this much like a listed one (difflib's ratio of letters and digits) is
# taken for a slip of the pen. A letter too many or too few in five, and a wrong one in eight, is
# above it; the shop's own intents are at most 0.75 alike, and account_locked is 0.846 like
# account_hacked.
_NEARLY = 0.86


class IntentEntry(BaseModel):
    """One line of the file. `products` is for whoever composes scenarios of the intent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    topic: Name
    split: Split
    products: Name | None = None


class _Loader(yaml.SafeLoader):
    """YAML with the places of duplicate keys, which plain YAML loading forgets."""

    duplicates: list[tuple[str, int, int]]


def read_intents(path: Path) -> dict[str, IntentEntry]:
    """Read the intents with their topics and splits.

    Raises:
        DataError: no such file, not YAML, an intent that is listed twice (so also: in two splits),
            an unknown split or key. `problems` lists all of them.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; it says which split each intent belongs to")
    try:
        raw, problems = _load(path)
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not YAML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("intents"), dict):
        raise DataError(
            f"{path}: key intents: missing; allowed is a mapping of intent to "
            "{topic: ..., split: train|validation|heldout}"
        )
    entries: dict[str, IntentEntry] = {}
    for name, value in raw["intents"].items():
        try:
            entries[str(name)] = IntentEntry.model_validate(value)
        except ValidationError as error:
            problems += describe(error, f"{path}: intent {name}", IntentEntry)
    if problems:
        raise DataError(problems)
    return entries


def assign_splits(
    scenarios: Iterable[Scenario],
    intents: dict[str, IntentEntry],
    source: Path | str,
    places: Mapping[str, str] | None = None,
) -> list[Scenario]:
    """Give each scenario the split of its intent; `places` says by id where one was read from.

    Raises:
        DataError: an intent that `source` does not list, or a scenario that names another topic or
            split than `source` does.
    """
    problems: list[str] = []
    result = []
    for scenario in scenarios:
        entry = intents.get(scenario.intent)
        place = f"{(places or {}).get(scenario.id, 'scenario')}: {scenario.id}"
        if entry is None:
            problems.append(
                f"{place}: key intent: found {scenario.intent!r}; allowed is one of "
                f"the {len(intents)} intents of {source}, so "
                + (f"write {meant!r}, or " if (meant := _nearly(scenario.intent, intents)) else "")
                + "add it there with its split"
            )
            continue
        if scenario.topic != entry.topic:
            problems.append(
                f"{place}: key topic: found {scenario.topic!r}; {source} says that "
                f"{scenario.intent} belongs to {entry.topic!r}"
            )
        if scenario.split not in (None, entry.split):
            problems.append(
                f"{place}: key split: found {scenario.split!r}; {source} puts the "
                f"whole intent {scenario.intent} into {entry.split!r}"
            )
        result.append(scenario.model_copy(update={"split": entry.split}))
    if problems:
        raise DataError(problems)
    return result


def check_preferences_apart(
    learned_from: Sequence[PreferencePair],
    measured_with: Sequence[PreferencePair],
    intents: dict[str, IntentEntry],
    source: Path | str,
) -> None:
    """Hold the two parts of the preferences apart, and both away from held-out intents.

    Pairs may be of intents that `source`, where `intents` were read from, does not list. But a
    listed name with a slip in it would get past this check, so what is nearly one is refused.

    Raises:
        DataError: an intent in both parts, a pair of an intent held out for evaluation, or of one
            that is written nearly like a listed one.
    """
    both = {pair.intent for pair in learned_from} & {pair.intent for pair in measured_with} - {None}
    problems = [
        f"intent {name}: found in the pairs to learn from and in the held-out pairs; allowed is one"
        for name in sorted(str(name) for name in both)
    ]
    for pair in (*learned_from, *measured_with):
        if pair.intent is None:
            continue
        entry = intents.get(pair.intent)
        if entry is None and (meant := _nearly(pair.intent, intents)):
            problems.append(
                f"pair {pair.id}: key intent: found {pair.intent!r}, which {source} does not list, "
                f"and nearly {meant!r}, which it does; write that, or list {pair.intent!r} there "
                "with its split if it is another matter"
            )
        if entry and entry.split == "heldout":
            problems.append(
                f"pair {pair.id}: key intent: found {pair.intent!r}, which is held out for "
                "evaluation; allowed are intents of the splits train and validation"
            )
    if problems:
        raise DataError(problems)


def _nearly(name: str, intents: Iterable[str]) -> str | None:
    """The listed intent that `name` is a slip of, if it looks like one."""
    simple = {_letters(listed): listed for listed in intents}
    close = difflib.get_close_matches(_letters(name), simple, n=1, cutoff=_NEARLY)
    return simple[close[0]] if close else None


def _letters(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _load(path: Path) -> tuple[Any, list[str]]:
    loader = _Loader(path.read_text("utf-8-sig"))
    loader.duplicates = []
    try:
        raw = loader.get_single_data()
    finally:
        loader.dispose()
    problems = [
        f"{path}:{second}: intent {key}: found a second time, first on line {first}; allowed is "
        "one line an intent, in one split"
        for key, first, second in loader.duplicates
    ]
    return raw, problems


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    lines: dict[str, int] = {}
    for key_node, _ in node.value:
        line = key_node.start_mark.line + 1
        if key_node.value in lines:
            loader.duplicates.append((key_node.value, lines[key_node.value], line))
        lines.setdefault(key_node.value, line)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
