"""Whether a model and the settings of training fit each other.

Owns the checks that need the model: before anything is played, all of them in one message. What
settings say against each other is `config`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers.pytorch_utils import Conv1D

from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.config import TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_model(model: PreTrainedModel, config: TrainingConfig) -> None:
    """Compare lengths with the model's positions, and LoRA's targets with its layers.

    Raises:
        ConfigurationError: `max_prompt_length` leaves no position for an answer, or a target module
            is not a linear layer of this model: each of them, not only all.
    """
    problems = []
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and config.max_prompt_length >= positions:
        problems.append(
            f"max_prompt_length={config.max_prompt_length}, and {type(model).__name__} has "
            f"{positions} positions, answers included: lower max_prompt_length to below "
            f"{positions}, or use a model with a longer context"
        )
    if config.use_lora and config.lora_target_modules != "all-linear":
        linear = {
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D)
        }
        lacking = [
            target
            for target in config.lora_target_modules
            if not any(f".{name}".endswith(f".{target}") for name in linear)
        ]
        if lacking:
            problems.append(
                f"lora_target_modules={config.lora_target_modules!r} cannot be adapted in a "
                f"{type(model).__name__}, which has no linear layer {', '.join(lacking)}: choose "
                f'from {sorted({name.rsplit(".", 1)[-1] for name in linear})} or "all-linear"'
            )
    if problems:
        raise ConfigurationError(problems)
