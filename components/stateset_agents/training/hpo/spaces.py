"""Search spaces: which settings are searched over, and between which values.

Owns the form of a space, the five that ship, and how a point in one becomes settings of training
and agent. It does not know how points are chosen. A parameter is a setting of `TrainingConfig` or
of the agent's `GenerationSettings` under its own name (`beta` and `kl_penalty` are taken too), or
`clip_range`, which is both clips at once.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from stateset_agents.core.agent import AgentConfig, GenerationSettings
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.settings import allowed_keys
from stateset_agents.training.algorithms import ALGORITHMS
from stateset_agents.training.config import SETTINGS_WITHOUT_EFFECT_ON_WEIGHTS, TrainingConfig

ParameterType = Literal["uniform", "loguniform", "int", "categorical"]
Choice = bool | int | float | str | None
Parameters = dict[str, Any]

# One name for two settings: the guide's symmetric clip.
_BOTH_CLIPS = ("clip_range_left", "clip_range_right")
_BOUNDS = {"low", "high"}

# Why a setting that exists is not searched over.
_NOT_SEARCHED = {
    **dict.fromkeys(SETTINGS_WITHOUT_EFFECT_ON_WEIGHTS, "it changes no result"),
    "seed": "the best of several seeds is luck; HPOConfig.seed decides the search's",
    "num_episodes": "it is the budget; HPOConfig.episodes_per_trial sets that of every trial",
    "num_epochs": "it is the budget; HPOConfig.episodes_per_trial sets that of every trial",
    "micro_batch_tokens": "it changes speed and memory, not the result",
    "share_prefix": "it changes speed, not the result",
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One axis of a space: a range with both ends included, or a list of choices."""

    type: ParameterType
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Choice, ...] = ()

    def contains(self, value: Any) -> bool:
        """True when a search may come to `value`."""
        if self.type == "categorical":
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and (self.type != "int" or value == int(value))

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Both ends, or every choice: what has to be a possible setting."""
        if self.type == "categorical":
            return self.choices
        return (int(self.low), int(self.high)) if self.type == "int" else (self.low, self.high)

    def to_json(self) -> dict[str, Any]:
        """As it is written in a space."""
        if self.type == "categorical":
            return {"type": self.type, "choices": list(self.choices)}
        low, high = self.extremes
        return {"type": self.type, "low": low, "high": high}


SearchSpace = dict[str, Parameter]


def _log(low: float, high: float) -> dict[str, Any]:
    return {"type": "loguniform", "low": low, "high": high}


def _range(low: float, high: float) -> dict[str, Any]:
    return {"type": "uniform", "low": low, "high": high}


def _whole(low: int, high: int) -> dict[str, Any]:
    return {"type": "int", "low": low, "high": high}


def _of(*choices: Choice) -> dict[str, Any]:
    return {"type": "categorical", "choices": list(choices)}


# Clips act from the second optimizer step on a batch on, so a space with clips has num_iterations.
_GRPO = {
    "learning_rate": _log(1e-6, 1e-3),
    "num_generations": _of(4, 8, 16),
    "num_iterations": _whole(1, 2),
    "clip_range": _range(0.1, 0.3),
    "kl_coefficient": _log(1e-4, 1e-1),
    "temperature": _range(0.6, 1.1),
}
_SPACES: dict[str, dict[str, dict[str, Any]]] = {
    "grpo": _GRPO,
    "full": {
        **{name: axis for name, axis in _GRPO.items() if name != "clip_range"},
        "clip_range_left": _range(0.1, 0.3),
        "clip_range_right": _range(0.1, 0.4),
        "gradient_accumulation_steps": _of(1, 2, 4),
        "lr_schedule": _of("constant", "linear", "cosine"),
        "warmup_ratio": _range(0.0, 0.2),
        "adam_beta1": _of(0.8, 0.9, 0.95),
        "adam_beta2": _of(0.95, 0.99, 0.999),
        "weight_decay": _log(1e-4, 1e-1),
        "max_grad_norm": _log(0.1, 5.0),
        "advantage_baseline": _of("group", "leave_one_out"),
        "scale_advantages": _of(True, False),
        "loss_aggregation": _of("sequence_mean", "token_mean"),
        "overlong_buffer": _range(0.0, 0.5),
    },
    # short answers that have to stay with a policy: near the base model, never very random
    "customer_service": {
        "learning_rate": _log(1e-6, 5e-4),
        "num_generations": _of(4, 8, 16),
        "kl_coefficient": _log(1e-3, 1e-1),
        "temperature": _range(0.5, 0.9),
        "overlong_buffer": _range(0.0, 0.5),
        "loss_aggregation": _of("sequence_mean", "token_mean"),
    },
    "conservative": {
        "learning_rate": _log(1e-6, 2e-5),
        "num_iterations": _whole(1, 2),
        "clip_range": _range(0.05, 0.15),
        "kl_coefficient": _log(1e-2, 1e-1),
        "warmup_ratio": _range(0.05, 0.2),
        "max_grad_norm": _range(0.3, 1.0),
    },
    "aggressive": {
        "learning_rate": _log(5e-6, 3e-3),
        "num_generations": _of(4, 8, 16, 32),
        "num_iterations": _whole(1, 4),
        "clip_range_left": _range(0.1, 0.4),
        "clip_range_right": _range(0.1, 0.8),
        "temperature": _range(0.5, 1.3),
        "max_grad_norm": _log(0.3, 10.0),
    },
}


def get_search_space(name: str) -> dict[str, dict[str, Any]]:
    """A space that ships, in the form that `HPOConfig.search_space` takes; a copy to change.

    `grpo` (what matters most), `full` (the optimizer and the advantages as well),
    `customer_service` (stays near the base model), `conservative` (narrow), `aggressive` (wide).

    Raises:
        ConfigurationError: there is none of that name.
    """
    if name not in _SPACES:
        raise ConfigurationError(
            f"search space {name!r} is unknown; choose from {', '.join(_SPACES)}, or give a "
            'mapping such as {"learning_rate": {"type": "loguniform", "low": 1e-6, "high": 1e-4}}'
        )
    return copy.deepcopy(_SPACES[name])


def parse_space(space: str | Mapping[str, Any]) -> SearchSpace:
    """A space by name or as a mapping, checked.

    Raises:
        ConfigurationError: every unknown name, parameter and type, a low end that is not below the
            high one, a list of fewer than two choices.
    """
    written = get_search_space(space) if isinstance(space, str) else space
    parsed: SearchSpace = {}
    problems = [] if written else ["the search space is empty; name one parameter at least"]
    for name, axis in written.items():
        found = _problems_of_name(name) or _problems_of_axis(name, axis)
        problems += found
        if found:
            continue
        values = {key: value for key, value in axis.items() if key != "type"}
        if "choices" in values:
            values["choices"] = tuple(values["choices"])
        parsed[name] = Parameter(axis["type"], **values)
    targets: dict[str, str] = {}
    for name in parsed:
        for setting in _settings_of(name):
            if setting in targets:
                problems.append(
                    f"search space: {targets[setting]} and {name} both set {setting}; keep one"
                )
            targets.setdefault(setting, name)
    if problems:
        raise ConfigurationError(problems)
    return parsed


def _problems_of_name(name: str) -> list[str]:
    if name in _NOT_SEARCHED:
        return [f"search space: {name} is not searched over: {_NOT_SEARCHED[name]}"]
    known = ["clip_range", *allowed_keys(TrainingConfig), *allowed_keys(GenerationSettings)]
    known = [key for key in known if key not in _NOT_SEARCHED]
    if name in known:
        return []
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return [
        f"search space: {name} is no setting of the training or the agent; {hint}allowed: "
        f"{', '.join(known)}"
    ]


def _problems_of_axis(name: str, axis: Any) -> list[str]:
    where = f"search space: {name}"
    types = get_args(ParameterType)
    if not isinstance(axis, Mapping) or axis.get("type") not in types:
        found = axis.get("type") if isinstance(axis, Mapping) else axis
        return [f"{where}: found type {found!r}; allowed: {', '.join(types)}"]
    needed = {"choices"} if axis["type"] == "categorical" else _BOUNDS
    given = set(axis) - {"type"}
    if given != needed:
        return [
            f"{where}: found {', '.join(sorted(given)) or 'nothing'} beside the type; "
            f"{axis['type']} takes {' and '.join(sorted(needed, reverse=True))}"
        ]
    if axis["type"] == "categorical":
        return _problems_of_choices(where, axis["choices"])
    return _problems_of_range(where, axis["type"], axis["low"], axis["high"])


def _problems_of_choices(where: str, choices: Any) -> list[str]:
    if not isinstance(choices, list | tuple):
        return [f"{where}: choices is {choices!r}; give a list"]
    wrong = [one for one in choices if not isinstance(one, bool | int | float | str | None)]
    if wrong:
        return [f"{where}: choice {wrong[0]!r} is no number, text, true, false or null"]
    if len({(type(one).__name__, one) for one in choices}) < max(2, len(choices)):
        return [
            f"{where}: choices {list(choices)!r} leave nothing to choose or repeat one; give two "
            "different ones at least, or set the value in the base configuration"
        ]
    return []


def _problems_of_range(where: str, kind: str, low: Any, high: Any) -> list[str]:
    for end, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return [f"{where}: {end} is {value!r}; give a number"]
        if not math.isfinite(value):
            return [f"{where}: {end} is {value!r}; give a finite number"]
        if kind == "int" and value != int(value):
            return [f"{where}: {end} is {value!r}; an int range has whole ends"]
    if low >= high:
        return [f"{where}: low={low} is not below high={high}; exchange them, or fix the value"]
    if kind == "loguniform" and low <= 0:
        return [f"{where}: low={low} has no logarithm; give one above 0, or type uniform"]
    return []


def _settings_of(name: str) -> tuple[str, ...]:
    """The settings that a parameter sets, by their own names."""
    if name == "clip_range":
        return _BOTH_CLIPS
    return ("kl_coefficient",) if name in ("beta", "kl_penalty") else (name,)


def with_parameters(config: TrainingConfig, parameters: Mapping[str, Any]) -> TrainingConfig:
    """The training settings with those of `parameters` that are training's.

    Raises:
        ConfigurationError: settings that cannot work together.
    """
    _, changed = split_parameters(parameters)
    return type(config)(**{**config.model_dump(include=config.model_fields_set), **changed})


def split_parameters(parameters: Mapping[str, Any]) -> tuple[Parameters, Parameters]:
    """Settings of the agent and settings of the training that a point sets, by their own names."""
    training = {
        setting: value
        for name, value in parameters.items()
        if not _is_agents(name)
        for setting in _settings_of(name)
    }
    return agent_parameters(parameters), training


def agent_parameters(parameters: Mapping[str, Any]) -> Parameters:
    """Those of `parameters` that are the agent's."""
    return {name: value for name, value in parameters.items() if _is_agents(name)}


def _is_agents(name: str) -> bool:
    return name in GenerationSettings.model_fields and name not in TrainingConfig.model_fields


def check_space_fits(space: SearchSpace, config: TrainingConfig, agent: AgentConfig) -> list[str]:
    """What a trial would stumble over: an end of a range, or a choice, that cannot work with the
    base settings, and parameters that nothing would read. Returns what is only wasteful.

    Raises:
        ConfigurationError: a problem a line.
    """
    problems = []
    for name, axis in space.items():
        if name.startswith("lora_") and not config.use_lora and "use_lora" not in space:
            problems.append(f"search space: {name} has no effect with use_lora=False in the base")
            continue
        for value in axis.extremes:
            try:
                with_parameters(config, {name: value})
                AgentConfig(**{**agent.model_dump(), **agent_parameters({name: value})})
            except ConfigurationError as error:
                problems += [f"search space: {name}={value!r}: {text}" for text in error.problems]
    if problems:
        raise ConfigurationError(problems)
    clips = sorted(name for name in space if name.startswith("clip_range"))
    steps = config.num_iterations or ALGORITHMS[config.algorithm].num_iterations
    if clips and "num_iterations" not in space and steps == 1:
        return [
            f"{' and '.join(clips)} act from the second optimizer step on a batch on, and "
            "num_iterations is 1: the search will find no difference. Set num_iterations=2 in the "
            "base configuration, or search over it"
        ]
    return []
