"""The model that a run trains: from an agent's settings to weights in the format that computes.

Owns where it lies and in which number format. It does not know what of it is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stateset_agents.core.agent import AgentConfig
from stateset_agents.inference.loading import (
    load_model,
    resolve_attention,
    resolve_device,
    resolve_dtype,
)
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.model_check import check_model
from stateset_agents.training.precision import computing_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_policy_model(
    spoken: AgentConfig, config: TrainingConfig
) -> tuple[PreTrainedModel, TrainingConfig]:
    """The agent's model once more, to be trained, and `config` with the number format that the
    machine computes in.

    Raises:
        ConfigurationError: settings that the model cannot follow.
        ModelSourceError: the model cannot be loaded.
    """
    device, _ = resolve_device(spoken.device_map)
    dtype = computing_dtype(config, device)
    # what an attention falls back to, the agent has told
    attention, _ = resolve_attention(spoken.attn_implementation, device, resolve_dtype(dtype))
    model = load_model(spoken.model_name, dtype=dtype, device=device, attn_implementation=attention)
    check_model(model, config)
    formats = {"bf16": dtype == "bfloat16", "fp16": dtype == "float16"}
    return model, config.model_copy(update=formats)
