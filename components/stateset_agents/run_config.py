"""Every parameter of the line in one object, read from `params.yaml`.

Owns how a YAML file becomes settings and how its problems are told. What a section means is its
room's business. Imports no torch, transformers or mlflow.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from stateset_agents.core.agent import GenerationSettings
from stateset_agents.data.config import DataConfig
from stateset_agents.evaluation.config import EvaluationConfig
from stateset_agents.exceptions import ConfigurationError, DataError
from stateset_agents.rewards.config import RewardsConfig, RewardWeights
from stateset_agents.serving.config import ServeConfig
from stateset_agents.settings import Problem, Settings, find_problems
from stateset_agents.tracking.config import (
    BaseModelConfig,
    PromoteConfig,
    RegisterConfig,
    TrackingConfig,
)
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.hpo.config import TuneConfig
from stateset_agents.training.reward_model_config import RewardModelConfig

Key = tuple[str | int, ...]
TUNED_SECTIONS = ("agent", "train")

# A section is called `register`, and so is a method of `ABCMeta`, which nobody calls here.
warnings.filterwarnings("ignore", message='Field name "register"', category=UserWarning)


class RunConfig(Settings):
    """One section a step or a concern; a section that is left out has its defaults."""

    base_model: BaseModelConfig = Field(default_factory=BaseModelConfig)
    """Which model the line starts from."""
    scenarios: DataConfig = Field(default_factory=DataConfig)
    """What the data must be like, and how it is split."""
    agent: GenerationSettings = Field(default_factory=GenerationSettings)
    """How the policy speaks, in training, evaluation and service alike."""
    rewards: RewardsConfig = Field(default_factory=RewardsConfig)
    """What a conversation is rewarded for."""
    reward_model: RewardModelConfig = Field(default_factory=RewardModelConfig)
    """How the learned reward is trained."""
    tune: TuneConfig = Field(default_factory=TuneConfig)
    """How the parameters of `agent` and `train` are searched for; not at all by default."""
    train: TrainingConfig = Field(default_factory=TrainingConfig)
    """How the policy is trained."""
    evaluate: EvaluationConfig = Field(default_factory=EvaluationConfig)
    """How policies are compared on held-out scenarios."""
    register: RegisterConfig = Field(default_factory=RegisterConfig)
    """How a version is registered."""
    promote: PromoteConfig = Field(default_factory=PromoteConfig)
    """When a challenger becomes the champion."""
    serve: ServeConfig = Field(default_factory=ServeConfig)
    """Where the server listens and how much it takes."""
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    """Where runs and model versions are kept."""


def load(path: Path | str) -> RunConfig:
    """Read a YAML file of settings.

    Numbers are read as YAML 1.2 has them (`3e-4` is a number, as DVC reads it too); a value of
    the wrong type is refused, not converted.

    Raises:
        ConfigurationError: the file cannot be read, is not YAML, or holds unknown or repeated
            keys or wrong values. Every problem is a line: file, line, key, found, allowed.
    """
    path = Path(path)
    root = _compose(path)
    lines = dict(_key_lines(root))
    problems = [
        _line(path, lines, Problem(key, f"this key is there twice, first in line {first}"), line)
        for key, first, line in _repeated_keys(root)
    ]
    if problems:
        raise ConfigurationError(problems)
    values = _construct(path, root)
    try:
        return RunConfig.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise ConfigurationError(
            [_line(path, lines, problem) for problem in find_problems(error, RunConfig, values)]
        ) from error


def read_tuned(path: Path) -> dict[str, dict[str, Any]]:
    """What a search found, as the line's step `tune` writes it: settings of the sections `agent`
    and `train`, both empty where nothing was better than what stands in the file of settings.

    Raises:
        DataError: the file cannot be read, or is none of these.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {section: dict(found[section]) for section in TUNED_SECTIONS}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} cannot be used ({type(error).__name__}: {error}); needed is a file with the "
            f"sections {' and '.join(TUNED_SECTIONS)}, such as the step tune writes"
        ) from error


def lay_over(config: RunConfig, found: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """The settings with `read_tuned` laid over them; `config` stays as it is.

    Raises:
        ConfigurationError: what was found does not go with the rest.
    """
    if not any(found[section] for section in TUNED_SECTIONS):
        return config
    changed = config.model_copy()
    spoken, base = config.agent, config.train
    changed.agent = type(spoken)(**{**spoken.model_dump(), **found["agent"]})
    changed.train = type(base)(
        **{**base.model_dump(include=base.model_fields_set), **found["train"]}
    )
    return changed


def starter() -> RunConfig:
    """The defaults, but for what a first run in an empty folder needs: conversations that ship with
    the package, rewards that need neither rubrics nor a reward model, and a run of eight steps that
    two cores manage (the settings of the line, which learn).
    """
    return RunConfig(
        scenarios=DataConfig(sources=("builtin:customer_service",), intents=""),
        agent=GenerationSettings(max_new_tokens=40, temperature=0.7),
        rewards=RewardsConfig(
            weights=RewardWeights(rubric=0.0, helpfulness=0.75, conciseness=0.25, learned=0.0),
            min_words=4,
            max_words=30,
            hard_max_words=60,
        ),
        train=TrainingConfig(
            num_episodes=32,
            num_generations=8,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=1,
            credit="turn",
            learning_rate=5e-4,
            lr_schedule="linear",
            warmup_ratio=0.0,
            use_lora=True,
            micro_batch_tokens=2048,
            save_steps=5,
            logging_steps=1,
        ),
    )


def write_starter(path: Path, *, replace: bool = False) -> None:
    """Write `starter()` as a file that `load` takes: every parameter with its meaning, and its
    default where the file has another value.

    Raises:
        ConfigurationError: the file is there and `replace` is False, or it cannot be written.
    """
    if path.exists() and not replace:
        raise ConfigurationError(f"{path}: is there already; give another path, or --force")
    lines = textwrap.dedent(STARTER_HEAD).strip().splitlines()
    chosen = starter()
    for name, field in RunConfig.model_fields.items():
        default = field.get_default(call_default_factory=True)
        section = _starter_lines(getattr(chosen, name), default, "  ")
        lines += ["", f"# {field.description}", f"{name}:", *section]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}") from error


STARTER_HEAD = """
    # Every parameter with its meaning. Where a value is not the default, so that a first run is
    # small, the line above says what the default is.
    # `stateset-agents train --config THIS --stub` tries it in seconds and needs no model; without
    # --stub the base model that is named below is fetched and trained.
    # The scenarios are conversations that ship with the package (builtin:customer_service). For
    # your own give files in scenarios.sources, such as `stateset-agents data import` writes.
"""


def _starter_lines(section: Settings, default: Settings, indent: str) -> Iterator[str]:
    fields = type(section).model_fields
    # what a section is about comes before what it inherits, such as when a run is looked at
    for name in sorted(fields, key=lambda one: one not in type(section).__annotations__):
        field = fields[name]
        for line in textwrap.wrap(field.description or "", 96 - len(indent)):
            yield f"{indent}# {line}"
        value, usual = getattr(section, name), getattr(default, name)
        if isinstance(value, Settings):
            yield f"{indent}{name}:"
            yield from _starter_lines(value, usual, indent + "  ")
            continue
        if value != usual:
            yield f"{indent}# Default: {_plain(default, name)}"
        yield f"{indent}{name}: {_plain(section, name)}"


def _plain(section: Settings, name: str) -> str:
    return json.dumps(section.model_dump(mode="json", include={name})[name])


class _Loader(yaml.SafeLoader):
    """YAML whose floats are those of version 1.2: an exponent needs neither a dot nor a sign."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)$"),
    list("-+.0123456789"),
)


def _compose(path: Path) -> yaml.Node:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path}: no such file; give the path of a params.yaml, "
            "or write one with `stateset-agents init --path params.yaml`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not valid YAML: {_yaml_problem(error)}") from error
    if root is None:
        return yaml.MappingNode("tag:yaml.org,2002:map", [])
    if not isinstance(root, yaml.MappingNode):
        raise ConfigurationError(
            f"{path}: found {'a list' if isinstance(root, yaml.SequenceNode) else 'one value'}, "
            f"allowed: sections ({', '.join(RunConfig.model_fields)}) with `key: value` lines"
        )
    return root


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else str(problem)


def _construct(path: Path, root: yaml.Node) -> Any:
    loader = _Loader("")
    try:
        values = loader.construct_document(root)
    except (yaml.YAMLError, ValueError) as error:
        problem = _yaml_problem(error) if isinstance(error, yaml.YAMLError) else error
        raise ConfigurationError(f"{path}: not valid YAML: {problem}") from error
    finally:
        loader.dispose()
    unreadable = [
        f"{path}: {'.'.join(map(str, key))}: found {value}, allowed: a finite number"
        for key, value in _leaves(values)
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if unreadable:
        raise ConfigurationError(unreadable)
    return values


def _leaves(value: Any, prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _leaves(child, (*prefix, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _leaves(child, (*prefix, index))
    else:
        yield prefix, value


def _children(node: yaml.Node) -> Iterator[tuple[str | int, yaml.Node, yaml.Node]]:
    """Key, the node that says where it stands, the node of its value."""
    if isinstance(node, yaml.MappingNode):
        for key_node, value in node.value:
            yield str(key_node.value), key_node, value
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield index, value, value


def _key_lines(node: yaml.Node, prefix: Key = ()) -> Iterator[tuple[Key, int]]:
    for key, place, value in _children(node):
        yield (*prefix, key), place.start_mark.line + 1
        yield from _key_lines(value, (*prefix, key))


def _repeated_keys(node: yaml.Node, prefix: Key = ()) -> Iterator[tuple[Key, int, int]]:
    seen: dict[str | int, int] = {}
    for key, place, value in _children(node):
        line = place.start_mark.line + 1
        if key in seen:
            yield (*prefix, key), seen[key], line
        seen.setdefault(key, line)
        yield from _repeated_keys(value, (*prefix, key))


def _line(path: Path, lines: dict[Key, int], problem: Problem, line: int | None = None) -> str:
    location = problem.location
    while line is None and location:
        line = lines.get(location)
        location = location[:-1]
    where = f"{path}, line {line}" if line else str(path)
    return f"{where}: {problem}"
