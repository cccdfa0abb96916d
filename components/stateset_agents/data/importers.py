"""Reading the formats that people have: OpenAI chat, ShareGPT, TRL preferences, CSV.

Each importer gives scenarios or preference pairs and raises one `DataError` with every row that
cannot become one. Real files are odd, and what is done about it is written at each importer; in
all of them roles may be called as any chat format calls them, neighbouring messages of one role are
joined, a greeting by the assistant before the first user turn goes to `metadata.greeting`, and
messages of tools are left out and counted in `metadata.tool_messages`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from stateset_agents.data.conversations import (
    Conversation,
    read_conversation,
    split_transcript,
)
from stateset_agents.data.readers import describe, read_rows
from stateset_agents.data.schemas import PreferencePair, Scenario
from stateset_agents.exceptions import DataError

Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class _Labels:
    """What the rows of formats without such fields belong to."""

    topic: str
    intent: str


def import_openai_chat(
    path: Path, *, topic: str = "imported", intent: str = "imported"
) -> list[Scenario]:
    """Scenarios from OpenAI's fine-tuning format, one `{"messages": [...]}` a line.

    Oddities: content as a list of parts (the text parts are joined), content null beside
    `tool_calls`, the role `developer` for system, further keys (`tools`, `weight`, `name`).
    The assistant's answers become `metadata.reference_answers`.

    Raises:
        DataError: every row that is not such a conversation, with file, line, key.
    """
    labels = _Labels(topic, intent)
    return _convert(path, Scenario, lambda row, place: _chat_scenario(row, path, place, labels))


def import_openai_preferences(
    path: Path, *, topic: str = "imported", intent: str = "imported"
) -> list[PreferencePair]:
    """Pairs from OpenAI's preference format: `input.messages`, `preferred_output` and
    `non_preferred_output`.

    Raises:
        DataError: as in `import_openai_chat`.
    """

    def convert(row: dict[str, Any], place: str) -> dict[str, Any]:
        given = row.get("input")
        return {
            "id": str(row.get("id", _name(path, place))),
            "topic": topic,
            "intent": intent,
            "prompt": read_conversation(_messages(given, "messages", f"{place}: key input")).all,
            "chosen": read_conversation(_messages(row, "preferred_output", place)).all,
            "rejected": read_conversation(_messages(row, "non_preferred_output", place)).all,
        }

    return _convert(path, PreferencePair, convert)


def import_sharegpt(
    path: Path, *, topic: str = "imported", intent: str = "imported"
) -> list[Scenario]:
    """Scenarios from ShareGPT: `{"conversations": [{"from": "human", "value": ...}]}`, an array or
    JSONL.

    Oddities: the list under `items` or `messages`, a `system` key beside it, `gpt`, `chatgpt`,
    `bing`, `bard` and `human` as speakers, a conversation that begins in the middle (with `gpt`).

    Raises:
        DataError: as in `import_openai_chat`.
    """

    def convert(row: dict[str, Any], place: str) -> dict[str, Any]:
        key = next((key for key in ("conversations", "items", "messages") if key in row), None)
        if key is None:
            raise DataError(
                f"{place}: key conversations: missing field; found the keys "
                f"{', '.join(row) or 'none'}, allowed is a list of messages under conversations"
            )
        messages = _messages(row, key, place)
        if isinstance(row.get("system"), str) and row["system"].strip():
            messages = [{"from": "system", "value": row["system"]}, *messages]
        name = str(row.get("id") or _name(path, place))
        return _scenario(read_conversation(messages), name, _Labels(topic, intent))

    return _convert(path, Scenario, convert)


def import_trl_preferences(
    path: Path, *, topic: str = "imported", intent: str = "imported"
) -> list[PreferencePair]:
    """Pairs from any of TRL's preference formats.

    Conversational or plain text (a string is one message); with an explicit `prompt`, or with the
    prompt repeated at the head of `chosen` and `rejected`; the paragraphs of
    `Human: ...` and `Assistant: ...` of older data sets. Scores and other columns go to `metadata`.

    Raises:
        DataError: as in `import_openai_chat`; also a pair whose answers share no prompt.
    """

    def convert(row: dict[str, Any], place: str) -> dict[str, Any]:
        missing = [key for key in ("chosen", "rejected") if key not in row]
        if missing:
            raise DataError(
                f"{place}: key {missing[0]}: missing field; allowed is a row with chosen, rejected "
                "and optionally prompt"
            )
        for key in ("prompt", "chosen", "rejected"):
            if isinstance(row.get(key), list):
                _messages(row, key, place)  # what is wrong with them, with the place
        chosen, rejected = (_answer(row[key]) for key in ("chosen", "rejected"))
        if row.get("prompt"):
            prompt = _prompt(row["prompt"])
        else:
            prompt, chosen, rejected = _shared_prompt(chosen, rejected, place)
        known = {"id", "topic", "intent", "prompt", "chosen", "rejected"}
        return {
            "id": str(row.get("id", _name(path, place))),
            "topic": str(row.get("topic") or topic),
            "intent": str(row.get("intent") or intent),
            "prompt": prompt,
            "chosen": chosen,
            "rejected": rejected,
            "metadata": {key: value for key, value in row.items() if key not in known},
        }

    return _convert(path, PreferencePair, convert)


def import_csv(path: Path, *, topic: str = "imported", intent: str = "imported") -> list[Scenario]:
    """Scenarios from a table: one message a row (`conversation_id, role, content`), or one
    conversation a row (`user_1, user_2, ...` and optionally `id, topic, intent, context`).

    Oddities: comma, semicolon or tab between columns, a byte order mark, names of columns in any
    case, line breaks inside quotes, empty rows (left out).

    Raises:
        DataError: as in `import_openai_chat`; a table with neither set of columns.
    """
    rows = _table(path)
    columns = set(rows[0][1]) if rows else set()
    if {"role", "content"} <= columns:
        records = _long_table(path, rows, _Labels(topic, intent))
    elif any(name.startswith("user_") for name in columns):
        records = [
            (
                place,
                {
                    "id": row.get("id") or _name(path, place),
                    "topic": row.get("topic") or topic,
                    "intent": row.get("intent") or intent,
                    "context": row.get("context", ""),
                    "user_responses": [
                        value
                        for name, value in sorted(row.items(), key=_column_number)
                        if name.startswith("user_") and value
                    ],
                },
            )
            for place, row in rows
        ]
    else:
        raise DataError(
            f"{path}:1: found the columns {', '.join(sorted(columns)) or 'none'}; allowed are "
            "conversation_id, role, content (one message a row) or user_1, user_2, ... (one "
            "conversation a row)"
        )
    return _build(records, Scenario)


def import_csv_preferences(
    path: Path, *, topic: str = "imported", intent: str = "imported"
) -> list[PreferencePair]:
    """Pairs from a table with the columns `prompt`, `chosen` and `rejected`.

    Raises:
        DataError: as in `import_csv`.
    """
    rows = _table(path)
    missing = {"prompt", "chosen", "rejected"} - set(rows[0][1]) if rows else set()
    if missing:
        raise DataError(
            f"{path}:1: column {', '.join(sorted(missing))}: missing; found "
            f"{', '.join(sorted(rows[0][1]))}, allowed are prompt, chosen, rejected"
        )
    records = [
        (
            place,
            {
                "id": row.get("id") or _name(path, place),
                "topic": row.get("topic") or topic,
                "intent": row.get("intent") or intent,
                "prompt": _prompt(row["prompt"]),
                "chosen": _answer(row["chosen"]),
                "rejected": _answer(row["rejected"]),
            },
        )
        for place, row in rows
    ]
    return _build(records, PreferencePair)


def write_records(records: Iterable[BaseModel], path: Path) -> None:
    """Write one JSON object a line; the file is whole or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            for record in records:
                values = record.model_dump(mode="json", exclude_none=True)
                file.write(json.dumps(values, ensure_ascii=False) + "\n")
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


IMPORTERS: dict[str, Callable[..., Sequence[BaseModel]]] = {
    "openai-chat": import_openai_chat,
    "openai-preferences": import_openai_preferences,
    "sharegpt": import_sharegpt,
    "trl-preferences": import_trl_preferences,
    "csv": import_csv,
    "csv-preferences": import_csv_preferences,
}


def _convert(
    path: Path, model: type[Record], convert: Callable[[dict[str, Any], str], dict[str, Any]]
) -> list[Record]:
    problems: list[str] = []
    records: list[tuple[str, dict[str, Any]]] = []
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    for place, row in read_rows(path, problems):
        if not isinstance(row, dict):
            problems.append(f"{place}: found {type(row).__name__}; allowed is a JSON object")
            continue
        try:
            records.append((place, convert(row, place)))
        except DataError as error:
            problems += error.problems
    return _build(records, model, problems, path)


def _build(
    records: Sequence[tuple[str, dict[str, Any]]],
    model: type[Record],
    problems: Sequence[str] = (),
    path: Path | None = None,
) -> list[Record]:
    found = list(problems)
    built = []
    places: dict[str, str] = {}
    for place, values in records:
        name = str(values.get("id"))
        if name in places:
            found.append(f"{place}: key id: found {name!r}, which {places[name]} already has")
        places.setdefault(name, place)
        try:
            built.append(model.model_validate(values))
        except ValidationError as error:
            found += describe(error, place, model)
    if not records and not found:
        found.append(f"{path or 'the table'}: no rows; allowed is at least one")
    if found:
        raise DataError(found)
    return built


def _chat_scenario(row: dict[str, Any], path: Path, place: str, labels: _Labels) -> dict[str, Any]:
    name = str(row.get("id") or _name(path, place))
    return _scenario(read_conversation(_messages(row, "messages", place)), name, labels)


def _scenario(conversation: Conversation, name: str, labels: _Labels) -> dict[str, Any]:
    metadata: dict[str, Any] = {"reference_answers": conversation.answers}
    if conversation.greeting:
        metadata["greeting"] = conversation.greeting
    if conversation.tool_messages:
        metadata["tool_messages"] = conversation.tool_messages
    return {
        "id": name,
        "topic": labels.topic,
        "intent": labels.intent,
        "user_responses": conversation.user_turns,
        "context": conversation.system,
        "metadata": metadata,
    }


def _messages(row: Any, key: str, place: str) -> list[dict[str, Any]]:
    found = row.get(key) if isinstance(row, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise DataError(
            f"{place}: key {key}: found {json.dumps(found, default=str)[:60]}; allowed is a list "
            "of messages"
        )
    try:
        read_conversation(found)
    except DataError as error:
        raise DataError([f"{place}: key {key}{problem}" for problem in error.problems]) from error
    return found


def _answer(value: Any) -> Any:
    if isinstance(value, str):
        transcript = split_transcript(value)
        return transcript or [{"role": "assistant", "content": value.strip()}]
    return read_conversation(value).all if isinstance(value, list) else value


def _prompt(value: Any) -> Any:
    if isinstance(value, str):
        return split_transcript(value) or [{"role": "user", "content": value.strip()}]
    return read_conversation(value).all if isinstance(value, list) else value


def _shared_prompt(chosen: Any, rejected: Any, place: str) -> tuple[Any, Any, Any]:
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise DataError(f"{place}: key prompt: missing field, and chosen holds no conversation")
    length = 0
    for left, right in zip(chosen[:-1], rejected[:-1], strict=False):
        if left != right:
            break
        length += 1
    if length == 0:
        raise DataError(
            f"{place}: key prompt: missing field, and chosen and rejected begin differently; "
            "allowed is a prompt, or the same prompt at the head of both"
        )
    return chosen[:length], chosen[length:], rejected[length:]


def _table(path: Path) -> list[tuple[str, dict[str, str]]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: wrong encoding: found the byte 0x{error.object[error.start]:02x}; "
            "allowed is UTF-8 (export the table as 'CSV UTF-8')"
        ) from error
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    names: list[str] = []
    rows: list[tuple[str, dict[str, str]]] = []
    problems: list[str] = []
    start = 1
    for cells in reader:
        place, start = f"{path}:{start}", reader.line_num + 1
        if not any(cell.strip() for cell in cells):
            continue
        if not names:
            names = [cell.strip().lower().replace(" ", "_") for cell in cells]
        elif len(cells) != len(names):
            problems.append(f"{place}: found {len(cells)} cells; allowed are {len(names)}")
        else:
            values = [cell.strip() for cell in cells]
            rows.append((place, dict(zip(names, values, strict=True))))
    if not rows and not problems:
        problems.append(f"{path}: no rows below the header; allowed is at least one")
    if problems:
        raise DataError(problems)
    return rows


def _long_table(
    path: Path, rows: list[tuple[str, dict[str, str]]], labels: _Labels
) -> list[tuple[str, dict[str, Any]]]:
    groups: dict[str, list[tuple[str, dict[str, str]]]] = {}
    for place, row in rows:
        name = row.get("conversation_id") or row.get("id") or path.stem
        groups.setdefault(name, []).append((place, row))
    records = []
    problems: list[str] = []
    for name, members in groups.items():
        first_place, first = members[0]
        try:
            conversation = read_conversation([row for _, row in members])
        except DataError as error:
            problems += [f"{first_place}: conversation {name}{text}" for text in error.problems]
            continue
        own = _Labels(first.get("topic") or labels.topic, first.get("intent") or labels.intent)
        records.append((first_place, _scenario(conversation, name, own)))
    if problems:
        raise DataError(problems)
    return records


def _column_number(item: tuple[str, str]) -> int:
    tail = item[0].rsplit("_", 1)[-1]
    return int(tail) if tail.isdigit() else 0


def _name(path: Path, place: str) -> str:
    number = "".join(character for character in place[len(str(path)) :] if character.isdigit())
    return f"{path.stem}_{int(number or 0):05d}"
