"""Reading scenarios and preference pairs from JSONL and JSON files.

Every problem of every file is collected and raised at once, each with the file, the line, the key,
what was found and what is allowed. Nothing is skipped or repaired. An `s3://` source is first
fetched to a local file by whoever owns storage; `fetch` is that hook.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from stateset_agents.data.schemas import PreferencePair, Scenario
from stateset_agents.exceptions import DataError

Source = str | Path
Fetch = Callable[[str], Path]
Record = TypeVar("Record", Scenario, PreferencePair)

SUFFIXES = (".jsonl", ".json")
_LONGEST_EXCERPT = 60


def read_scenarios(
    sources: Source | Sequence[Source], *, fetch: Fetch | None = None
) -> list[Scenario]:
    """Read scenarios from files or folders, in the order given (folders: sorted by name).

    Args:
        sources: a `.jsonl` or `.json` file, a folder of them, or several of these.
        fetch: turns an `s3://` address into a local file or folder.

    Raises:
        DataError: a file that is missing, empty, not UTF-8, not JSON, or a row that is not a
            scenario; ids that occur twice, also across files. `problems` lists all of them.
    """
    return [scenario for _, scenario in locate_scenarios(sources, fetch=fetch)]


def read_preferences(
    sources: Source | Sequence[Source], *, fetch: Fetch | None = None
) -> list[PreferencePair]:
    """Read preference pairs; arguments and errors as in `read_scenarios`."""
    return [pair for _, pair in locate_preferences(sources, fetch=fetch)]


def locate_scenarios(
    sources: Source | Sequence[Source], *, fetch: Fetch | None = None
) -> list[tuple[str, Scenario]]:
    """As `read_scenarios`, each with the place it was read from (`file:line`)."""
    return _read(sources, Scenario, fetch)


def locate_preferences(
    sources: Source | Sequence[Source], *, fetch: Fetch | None = None
) -> list[tuple[str, PreferencePair]]:
    """As `read_preferences`, each with the place it was read from (`file:line`)."""
    return _read(sources, PreferencePair, fetch)


def read_rows(path: Path, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Give every row of a file with its place (`file:line`, or `file[index]` in a JSON array).

    What cannot be read is appended to `problems` and passed over.
    """
    text = _read_text(path, problems)
    if text is None:
        return
    if path.suffix == ".json":
        yield from _array_rows(path, text, problems)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            yield place, _parse(line)
        except json.JSONDecodeError as error:
            problems.append(
                f"{place}: malformed JSON at column {error.colno} ({error.msg}): found "
                f"{_excerpt(line.strip())}; allowed is one JSON object on a line"
            )
        except _UnsafeJSONError as error:
            problems.append(f"{place}: {error}")


def list_files(
    sources: Source | Sequence[Source], problems: list[str], fetch: Fetch | None = None
) -> list[Path]:
    """Resolve files, folders and `s3://` addresses to local files; complain into `problems`."""
    many = [sources] if isinstance(sources, str | Path) else list(sources)
    files: list[Path] = []
    for source in many:
        path = _local(source, fetch)
        if path.is_dir():
            found = sorted(entry for entry in path.iterdir() if entry.suffix in SUFFIXES)
            if not found:
                problems.append(f"{source}: the folder has no .jsonl or .json file")
            files += found
        elif not path.exists():
            problems.append(f"{source}: no such file or folder")
        elif path.suffix not in SUFFIXES:
            problems.append(
                f"{source}: found a {path.suffix or 'nameless'} file; allowed are "
                ".jsonl and .json (importers read other formats)"
            )
        else:
            files.append(path)
    return files


def describe(error: ValidationError, place: str, model: type[BaseModel]) -> list[str]:
    """Say every problem of one row: place, key, what was found, what is allowed."""
    return [
        _describe_one(detail, place, model)
        for detail in error.errors(include_url=False)
        if not _is_echo(detail)
    ]


def _read(
    sources: Source | Sequence[Source], model: type[Record], fetch: Fetch | None
) -> list[tuple[str, Record]]:
    problems: list[str] = []
    records: list[tuple[str, Record]] = []
    first_place: dict[str, str] = {}
    for path in list_files(sources, problems, fetch):
        rows = 0
        before = len(problems)
        for place, row in read_rows(path, problems):
            rows += 1
            try:
                record = model.model_validate(row)
            except ValidationError as error:
                problems += describe(error, place, model)
                continue
            if record.id in first_place:
                problems.append(
                    f"{place}: key id: found {record.id!r}, which {first_place[record.id]} "
                    "already has; allowed is an id that occurs once"
                )
            first_place.setdefault(record.id, place)
            records.append((place, record))
        if rows == 0 and len(problems) == before:
            problems.append(f"{path}: the file is empty; allowed is at least one row")
    if problems:
        raise DataError(problems)
    return records


def _local(source: Source, fetch: Fetch | None) -> Path:
    if str(source).startswith("s3://"):
        if fetch is None:
            raise DataError(f"{source}: an s3:// source needs `fetch` to bring it here first")
        return fetch(str(source))
    return Path(source)


def _read_text(path: Path, problems: list[str]) -> str | None:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}; allowed is a readable file")
        return None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problems.append(
            f"{path}:{line}: wrong encoding: found the byte 0x{error.object[error.start]:02x}; "
            "allowed is UTF-8 (convert it: iconv -f latin1 -t utf-8)"
        )
        return None


def _array_rows(path: Path, text: str, problems: list[str]) -> Iterator[tuple[str, Any]]:
    if not text.strip():
        return
    try:
        rows = _parse(text)
    except _UnsafeJSONError as error:
        problems.append(f"{path}: {error}")
        return
    except json.JSONDecodeError as error:
        problems.append(
            f"{path}:{error.lineno}: malformed JSON at column {error.colno} ({error.msg}); "
            "allowed is an array of objects"
        )
        return
    if not isinstance(rows, list):
        problems.append(f"{path}: found a JSON {_kind(rows)}; allowed is an array of objects")
        return
    for index, row in enumerate(rows):
        yield f"{path}[{index}]", row


class _UnsafeJSONError(ValueError):
    """Text that Python's parser takes or dies of, and that no two programs read alike."""


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise _UnsafeJSONError(
            "found JSON nested hundreds of levels deep; allowed are a few"
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _UnsafeJSONError(f"key {twice}: found twice in one object; allowed is once")
    return values


def _refuse_constant(name: str) -> None:
    raise _UnsafeJSONError(f"found {name}, which JSON does not have; allowed is a finite number")


def _describe_one(detail: Any, place: str, model: type[BaseModel]) -> str:
    location: tuple[int | str, ...] = detail["loc"]
    key = _key(location)
    kind = detail["type"]
    if kind == "missing":
        return f"{place}: key {key}: missing field; allowed is {_wanted(model, location)}"
    if kind == "extra_forbidden":
        return (
            f"{place}: key {key}: unknown key, found {_excerpt(detail['input'])}; allowed are "
            f"{', '.join(_fields(model, location[:-1]))}"
        )
    if kind == "value_error":
        return f"{place}: {detail['ctx']['error']!s}"
    if kind in ("string_too_short", "string_pattern_mismatch"):
        empty = "an empty user turn" if location[0] == "user_responses" else "an empty text"
        return f"{place}: key {key}: found {detail['input']!r}, {empty}; allowed is some text"
    if kind in ("model_type", "model_attributes_type") and not location:
        return f"{place}: found a JSON {_kind(detail['input'])}; allowed is an object"
    return (
        f"{place}: key {key}: found {_excerpt(detail['input'])}; allowed: "
        f"{detail['msg'][0].lower()}{detail['msg'][1:]}"
    )


def _is_echo(detail: Any) -> bool:
    # of a tuple whose items fail pydantic also says that it is too short
    return detail["type"] == "too_short" and bool(
        len(detail["input"]) >= detail["ctx"]["min_length"]
    )


def _fields(model: type[BaseModel], location: Iterable[int | str]) -> list[str]:
    """The keys that are allowed at a place inside `model`."""
    current = model
    for step in location:
        if isinstance(step, str) and step in current.model_fields:
            current = _model_inside(current.model_fields[step].annotation) or current
    return list(current.model_fields)


def _model_inside(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if found := _model_inside(argument):
            return found
    return None


def _wanted(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    if len(location) == 1:
        return f"a row with {', '.join(required)}"
    return f"an object with {', '.join(_fields(model, location[:-1]))}"


def _key(location: tuple[int | str, ...]) -> str:
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text or "(row)"


def _excerpt(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    shown = text if len(text) <= _LONGEST_EXCERPT else text[:_LONGEST_EXCERPT] + "…"
    return repr(shown) if isinstance(value, str) else shown


def _kind(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
