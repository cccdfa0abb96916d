"""The base of every group of settings: typed, documented, closed to unknown keys.

Each room defines the settings of its own section of `params.yaml` as a subclass; `run_config`
composes them. A setting is a field with a docstring: unit, range, what 0 or None means.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, get_args

from pydantic import AliasChoices, BaseModel, ConfigDict, ValidationError

from stateset_agents.exceptions import ConfigurationError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # pydantic's own name for it may move in any version


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with settings: `location` is the path of keys to it."""

    location: tuple[str | int, ...]
    text: str

    def __str__(self) -> str:
        key = ".".join(str(part) for part in self.location)
        return f"{key}: {self.text}" if key else self.text


class _SettingsMeta(ModelMetaclass):
    # Constructing in Python raises the package's own error. Not done by an `__init__`: pydantic
    # would call that for nested sections too, and the path of keys to a problem would be lost.
    def __call__(cls, *args: Any, **values: Any) -> Any:
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            model = cast("type[BaseModel]", cls)
            raise ConfigurationError(
                [str(p) for p in find_problems(error, model, values)]
            ) from error


class Settings(BaseModel, metaclass=_SettingsMeta):
    """A section of settings. Unknown keys and wrong types fail, also on later assignment.

    Raises:
        ConfigurationError: a problem a line, when constructed or assigned to. (`model_validate`
            and its kind raise pydantic's ValidationError, which `find_problems` puts into words.)
    """

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        validate_default=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    def __setattr__(self, name: str, value: Any) -> None:
        before = dict(self.__dict__)
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            # A check of several fields together runs when the value is in place already.
            self.__dict__.update(before)
            problems = [str(p) for p in find_problems(error, type(self))]
            raise ConfigurationError(problems) from error


def find_problems(
    error: ValidationError, model: type[BaseModel], values: Mapping[str, Any] | None = None
) -> list[Problem]:
    """Every problem of a failed validation: the key, what was found, what is allowed.

    Args:
        error: of the validation.
        model: what was validated.
        values: what it was given. With it, what contradicts each other is told beside a value that
            is wrong by itself, which ends pydantic's validation of its section.
    """
    texts: dict[tuple[str | int, ...], str] = {}
    wrong: dict[tuple[str | int, ...], set[str]] = {}  # keys by the section that they are in
    listed: set[type[BaseModel]] = set()  # sections whose allowed keys have been told
    for entry in error.errors(include_url=False):
        location = _keys_of(entry["loc"], model)
        section = _section_of(location, model)
        if len(location) > len(section):
            wrong.setdefault(section, set()).add(str(location[len(section)]))
        if location in texts and location != entry["loc"]:
            # a union reports once for each of its members
            texts[location] += f", or {_allowed(entry['msg'])}"
        else:
            texts[location] = _describe(dict(entry), model, listed)
    problems = [Problem(location, text) for location, text in texts.items()]
    for section, keys in wrong.items():
        problems += _problems_together(section, keys, model, values or {})
    return problems


def _section_of(location: tuple[str | int, ...], model: type[BaseModel]) -> tuple[str | int, ...]:
    """The part of a path that leads to a section."""
    return location[: sum(1 for _ in _models_along(location, model))]


def _problems_together(
    section: tuple[str | int, ...],
    wrong: set[str],
    model: type[BaseModel],
    values: Mapping[str, Any],
) -> list[Problem]:
    """What the section's check of several fields says of the values that are not wrong by
    themselves; what names one that is may go with it, and is left out.
    """
    given: Any = values
    for key in section:
        given = given.get(key) if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping):
        return []
    checked = _section_at(section, model)
    try:
        checked.model_validate({key: value for key, value in given.items() if key not in wrong})
    except ValidationError as error:
        lines = [
            line
            for entry in error.errors(include_url=False)
            if not entry["loc"]
            for line in _describe(dict(entry), checked, set()).splitlines()
        ]
        names = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in wrong))
        return [Problem(section, line) for line in lines if not names.search(line)]
    return []


def allowed_keys(model: type[BaseModel]) -> list[str]:
    """The keys that a section takes, other spellings (`beta` for `kl_coefficient`) included."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(name)
        if isinstance(field.validation_alias, AliasChoices):
            keys += [c for c in field.validation_alias.choices if isinstance(c, str) and c != name]
    return keys


def _describe(entry: dict[str, Any], model: type[BaseModel], listed: set[type[BaseModel]]) -> str:
    found = entry["input"]
    message = str(entry["msg"])
    if entry["type"] in ("extra_forbidden", "no_such_attribute"):
        return _describe_unknown_key(entry["loc"], model, listed)
    if entry["type"] == "missing":
        return "missing; it has no default, write a value"
    if entry["type"] in ("value_error", "assertion_error"):
        return message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return f"found {_show(found)}, allowed: {_allowed(message)}"


def _allowed(message: str) -> str:
    for prefix in ("Input should be ", "Input should ", "List should "):
        message = message.removeprefix(prefix)
    return message


def _describe_unknown_key(
    location: tuple[str | int, ...], model: type[BaseModel], listed: set[type[BaseModel]]
) -> str:
    section, key = _section_at(location[:-1], model), location[-1]
    for name, field in section.model_fields.items():
        alias = field.validation_alias
        spellings = {name, *(alias.choices if isinstance(alias, AliasChoices) else ())}
        if key in spellings:  # taken already, under another of its names
            others = " and ".join(f"`{other}`" for other in sorted(map(str, spellings - {key})))
            return f"is the same setting as {others}, and given twice; give it once"
    keys = allowed_keys(section)
    close = difflib.get_close_matches(str(key), keys, n=1)
    hint = f" did you mean `{close[0]}`?" if close else ""
    if section in listed:
        return f"unknown key;{hint}" if close else "unknown key, as above"
    listed.add(section)
    return f"unknown key;{hint} allowed: {', '.join(keys)}"


def _section_at(location: tuple[str | int, ...], model: type[BaseModel]) -> type[BaseModel]:
    return [model, *_models_along(location, model)][-1]


def _keys_of(location: tuple[str | int, ...], model: type[BaseModel]) -> tuple[str | int, ...]:
    """Leave out what pydantic adds to a path for the members of a union (`list[str]`)."""
    kept: list[str | int] = []
    section: type[BaseModel] | None = model
    for part in location:
        if section is None and kept and _is_union_member(part):
            continue
        kept.append(part)
        section = _model_at(section, part) if section is not None else None
    return tuple(kept)


def _is_union_member(part: str | int) -> bool:
    return part in ("str", "int", "float", "bool") or (isinstance(part, str) and "[" in part)


def _models_along(
    location: tuple[str | int, ...], model: type[BaseModel]
) -> Iterator[type[BaseModel]]:
    section: type[BaseModel] | None = model
    for part in location:
        section = _model_at(section, part) if section is not None else None
        if section is None:
            return
        yield section


def _model_at(section: type[BaseModel], key: str | int) -> type[BaseModel] | None:
    """The settings class that the field `key` holds, if it holds one."""
    for name, field in section.model_fields.items():
        alias = field.validation_alias
        others = alias.choices if isinstance(alias, AliasChoices) else []
        if key == name or key in others:
            candidates = [field.annotation, *get_args(field.annotation)]
            for candidate in candidates:
                if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                    return candidate
    return None


def _show(value: object) -> str:
    text = repr(value)
    shown = text if len(text) <= 80 else text[:77] + "..."
    kinds: dict[type, str] = {
        bool: "true or false",
        str: "text",
        int: "a whole number",
        float: "a number",
        list: "a list",
        dict: "a mapping",
        type(None): "nothing",
    }
    kind = kinds.get(type(value))
    return f"{shown} ({kind})" if kind else shown
