"""What TRL's trainers share: models on their way to them and back, and their logs.

Owns how an agent's model is loaded for them, and how what they trained becomes the plain model's
weights, which engines take. It does not know what is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from transformers import PrinterCallback, TrainerCallback

from stateset_agents.core.agent import MultiTurnAgent
from stateset_agents.inference.loading import has_native_bfloat16, load_model
from stateset_agents.training.config import TrainingConfig

if TYPE_CHECKING:
    from stateset_agents.tracking.loggers import MetricLogger


def runs_on_cpu(agent: MultiTurnAgent) -> bool:
    """True where the agent's settings, or the machine, leave no GPU."""
    return agent.config.device_map == "cpu" or not torch.cuda.is_available()


def computes_in_bf16(agent: MultiTurnAgent, config: TrainingConfig) -> bool:
    """True where `bf16` is asked for and the hardware has it, as in our own training."""
    return config.bf16 and has_native_bfloat16("cpu" if runs_on_cpu(agent) else "cuda")


def load_for_trl(agent: MultiTurnAgent, config: TrainingConfig) -> Any:
    """The agent's model, not the engine's copy. What is trained stays float32: all weights, or an
    adapter beside bfloat16 ones.
    """
    narrow = config.use_lora and computes_in_bf16(agent, config)
    return load_model(
        agent.config.model_name,
        dtype="bfloat16" if narrow else "float32",
        device="cpu" if runs_on_cpu(agent) else "cuda",
    )


def adapter_settings(config: TrainingConfig) -> LoraConfig | None:
    """PEFT's form of the adapter of a language model; None for all weights."""
    if not config.use_lora:
        return None
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora_dropout,
        target_modules=config.lora_target_modules,
        task_type="CAUSAL_LM",
    )


@torch.no_grad()
def merged_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """By the plain model's names: all parameters, or of a PEFT model the adapted weights with their
    update added.
    """
    if not hasattr(model, "peft_config"):
        yield from ((name, value.detach()) for name, value in model.named_parameters())
        return
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            weight = module.get_base_layer().weight
            layer: Any = module
            update = layer.get_delta_weight(layer.active_adapters[0])
            yield f"{name}.weight", (weight.float() + update.float()).to(weight.dtype)


def say_less(trainer: Any, logger: MetricLogger | None) -> None:
    """TRL's metrics go to a logger of ours, under their own names, and not to the console."""
    trainer.remove_callback(PrinterCallback)
    if logger is not None:
        trainer.add_callback(_Logging(logger))


class _Logging(TrainerCallback):
    def __init__(self, logger: MetricLogger) -> None:
        self._logger = logger

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        numbers = {name: value for name, value in logs.items() if isinstance(value, float)}
        self._logger.log(state.global_step, numbers)
