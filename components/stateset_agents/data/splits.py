"""Which part of the data an intent belongs to: one file decides, and whole intents move.

Owns `intents.yaml` and how scenarios get their split. Splitting by whole intents is what makes the
held-out part a test of matters never trained on, not of other words for the same matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from stateset_agents.data.readers import describe
from stateset_agents.data.schemas import Name, PreferencePair, Scenario, Split
from stateset_agents.exceptions import DataError

SPLITS: tuple[Split, ...] = ("train", "validation", "heldout")


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
                f"the {len(intents)} intents of {source}, so add it there with its split"
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
) -> None:
    """Hold the two parts of the preferences apart, and both away from held-out intents.

    Raises:
        DataError: an intent in both parts, or a pair of an intent held out for evaluation.
    """
    both = {pair.intent for pair in learned_from} & {pair.intent for pair in measured_with} - {None}
    problems = [
        f"intent {name}: found in the pairs to learn from and in the held-out pairs; allowed is one"
        for name in sorted(str(name) for name in both)
    ]
    for pair in (*learned_from, *measured_with):
        entry = intents.get(pair.intent) if pair.intent else None
        if entry and entry.split == "heldout":
            problems.append(
                f"pair {pair.id}: key intent: found {pair.intent!r}, which is held out for "
                "evaluation; allowed are intents of the splits train and validation"
            )
    if problems:
        raise DataError(problems)


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
