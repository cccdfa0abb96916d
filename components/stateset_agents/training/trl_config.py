"""`TrainingConfig` in TRL's words, or an error for what TRL has no word for.

Owns the table of what maps to what (docs/TRL_GRPO_TRAINING_GUIDE.md shows it), and the message
where TRL is not installed. It imports neither torch nor TRL: the result is a dictionary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.algorithms import ALGORITHMS, SETTING_OF_BOUND
from stateset_agents.training.config import TrainingConfig

# Settings of ours that one setting of TRL's stands for as it is, whatever is trained.
_OF_EVERY_TRAINER: dict[str, str] = {
    "seed": "seed",
    "learning_rate": "learning_rate",
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "adam_epsilon": "adam_epsilon",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "save_total_limit": "save_total_limit",
    "logging_steps": "logging_steps",
}
_OF_GRPO: dict[str, str] = {
    **_OF_EVERY_TRAINER,
    "num_generations": "num_generations",
    "max_completion_length": "max_completion_length",
    "kl_coefficient": "beta",
    "kl_bias_correction": "use_bias_correction_kl",
}
_OF_PAIRS: dict[str, str] = {
    **_OF_EVERY_TRAINER,
    "per_device_train_batch_size": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "num_epochs": "num_train_epochs",
}
# Settings of ours that decide several of TRL's, or what the wrapper itself does.
_DECIDE_MORE = frozenset(
    {
        "lr_schedule",
        "warmup_ratio",
        "max_prompt_length",
        "max_completion_length",
        "save_steps",
        "bf16",
        "use_lora",
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "lora_target_modules",
    }
)
_DECIDE_MORE_OF_GRPO = _DECIDE_MORE | frozenset(
    {
        "algorithm",
        "num_iterations",
        "num_episodes",
        "num_epochs",
        "num_outer_iterations",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "micro_batch_tokens",
        "resampling_rounds",
        "overlong_buffer",
        "loss_aggregation",
        "advantage_baseline",
        "scale_advantages",
        "kl_estimator",
        *SETTING_OF_BOUND.values(),
    }
)
_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
# How tokens are weighed -> TRL's loss of clipped ratios that weighs them so.
_LOSS_OF_AGGREGATION = {
    "sequence_mean": "grpo",
    "token_mean": "dapo",
    "fixed_length": "dr_grpo",
    "sequence_sum": "luspo",
}
# Losses of which TRL has one aggregation alone.
_ONLY_AGGREGATION = {"cispo": "token_mean", "sapo": "sequence_mean"}


def import_trl() -> ModuleType:
    """TRL, or what to install.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        import trl
    except ImportError as error:
        raise ConfigurationError(
            "TRL's trainers need TRL, which is not installed "
            f"({error}): pip install 'stateset-agents[trl]'"
        ) from error
    module: ModuleType = trl
    return module


def grpo_settings(
    config: TrainingConfig, *, temperature: float, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Keywords of TRL's `GRPOConfig` that mean what `config` does.

    Args:
        config: ours.
        temperature: of the agent's sampling; TRL's log-probs are at it.
        overrides: of `GRPOConfig`, over what is derived.

    Raises:
        ConfigurationError: settings that TRL has no counterpart for.
    """
    problems = list(_problems(config))
    if problems:
        raise ConfigurationError(problems)
    rows = config.groups_per_step * config.num_generations
    micro = overrides.get("per_device_train_batch_size", _rows_at_once(config, rows))
    if rows % micro:
        raise ConfigurationError(
            f"per_device_train_batch_size={micro} does not divide the {rows} conversations of a "
            "step into equal parts, which TRL needs: choose a divisor"
        )
    return {
        **_shared(config, _OF_GRPO, config.total_steps),
        **_loss_settings(config),
        "temperature": temperature,
        "num_iterations": config.num_iterations or ALGORITHMS[config.algorithm].num_iterations,
        "max_steps": config.total_steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": rows // micro,
        # a group of TRL's is a scenario, and our order of scenarios stands in the data set
        "shuffle_dataset": False,
        **overrides,
    }


def pair_settings(
    config: TrainingConfig, *, pairs: int, trainer: str, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Keywords that TRL's configurations of training on `pairs` preference pairs share, those of
    `trainer`: batches are pairs there, and `num_epochs` goes through all of them.

    Raises:
        ConfigurationError: settings that TRL has no counterpart for.
    """
    problems = list(_without_counterpart(config, {*_OF_PAIRS, *_DECIDE_MORE}, trainer))
    if problems:
        raise ConfigurationError(problems)
    steps = config.num_epochs * math.ceil(pairs / config.groups_per_step)
    return {
        **_shared(config, _OF_PAIRS, steps),
        "max_length": config.max_prompt_length + config.max_completion_length,
        **overrides,
    }


def _shared(config: TrainingConfig, same: Mapping[str, str], steps: int) -> dict[str, Any]:
    return {
        **{theirs: getattr(config, ours) for ours, theirs in same.items()},
        "lr_scheduler_type": _SCHEDULES[config.lr_schedule],
        "warmup_steps": math.ceil(config.warmup_ratio * steps),
        "save_strategy": "steps" if config.save_steps else "no",
        "save_steps": config.save_steps or 1,
        "activation_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def _loss_settings(config: TrainingConfig) -> dict[str, Any]:
    row = ALGORITHMS[config.algorithm]
    bounds = {
        name: default if (given := getattr(config, SETTING_OF_BOUND[name])) is None else given
        for name, default in row.bounds.items()
    }
    scale = row.scale_advantages if config.scale_advantages is None else config.scale_advantages
    settings: dict[str, Any] = {"scale_rewards": "group" if scale else "none"}
    if row.loss == "sapo":
        return {
            **settings,
            "loss_type": "sapo",
            "sapo_temperature_pos": bounds["temperature_positive"],
            "sapo_temperature_neg": bounds["temperature_negative"],
        }
    if row.loss == "cispo":
        # TRL's bound is on the ratio, ours on what is above 1
        return {**settings, "loss_type": "cispo", "epsilon_high": 1 + (bounds["clip_right"] or 0)}
    return {
        **settings,
        "loss_type": _LOSS_OF_AGGREGATION[_aggregation(config)],
        "importance_sampling_level": "sequence" if row.loss == "sequence_ratio" else "token",
        "epsilon": bounds["clip_left"],
        "epsilon_high": bounds["clip_right"],
        "delta": bounds.get("ratio_cap"),
    }


def _problems(config: TrainingConfig) -> Iterator[str]:
    yield from _problems_of_loss(config)
    if config.kl_coefficient and config.kl_estimator != "k3":
        yield f'kl_estimator="{config.kl_estimator}": TRL estimates the KL divergence by k3 alone'
    yield from _without_counterpart(config, {*_OF_GRPO, *_DECIDE_MORE_OF_GRPO}, "GRPOTrainer")


def _without_counterpart(config: TrainingConfig, known: set[str], trainer: str) -> Iterator[str]:
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name not in known and value != field.get_default(call_default_factory=True):
            yield f"{name}={value!r} has no counterpart in TRL's {trainer}: leave it out"


def _problems_of_loss(config: TrainingConfig) -> Iterator[str]:
    row, aggregation = ALGORITHMS[config.algorithm], _aggregation(config)
    if row.loss not in ("token_ratio", "sequence_ratio", *_ONLY_AGGREGATION):
        yield f'algorithm="{config.algorithm}" has no counterpart in TRL\'s GRPOTrainer'
        return
    only = _ONLY_AGGREGATION.get(row.loss)
    if (only and aggregation != only) or aggregation not in _LOSS_OF_AGGREGATION:
        allowed = only or ", ".join(_LOSS_OF_AGGREGATION)
        yield (
            f'loss_aggregation="{aggregation}" with algorithm="{config.algorithm}": TRL has '
            f"{allowed}"
        )
    if row.loss == "cispo" and config.clip_range_left is not None:
        yield f"clip_range_left={config.clip_range_left}: TRL's CISPO has no lower clip"
    baseline = config.advantage_baseline or row.advantage_baseline
    if baseline != "group":
        yield (
            f'advantage_baseline="{baseline}" (set, or of algorithm="{config.algorithm}"): '
            "TRL's GRPOTrainer compares a conversation with its group alone"
        )


def _aggregation(config: TrainingConfig) -> str:
    return config.loss_aggregation or ALGORITHMS[config.algorithm].loss_aggregation


def _rows_at_once(config: TrainingConfig, rows: int) -> int:
    """The most conversations that divide a step evenly and are within `micro_batch_tokens`."""
    longest = config.max_prompt_length + config.max_completion_length
    most = max(1, config.micro_batch_tokens // longest)
    return max(count for count in range(1, min(most, rows) + 1) if rows % count == 0)
