"""How much memory a run needs, from the model's shape and the settings, before anything is loaded.

Owns the estimate, part by part; the memory guide and `stateset-agents doctor` show it. It knows no
torch and measures nothing. Bytes throughout.

With P parameters, c bytes of a computed number (2 in bfloat16, else 4), L layers, D hidden size, I
inner size, K the width of all key heads together and V the vocabulary:

    weights       2 c P                the policy and the engine's copy; c P more where the engine
                  keeps its own packed as well: in bfloat16 on a processor
    optimizer     full: 16 P in bfloat16 (float32 masters, gradients, Adam's two), 12 P in float32,
                  and c P for the frozen copy where KL is measured or pairs are compared with it;
                  12 V D for the head's gradient, what it is made of and the embedding's
                  LoRA: 16 A for the adapter's A parameters, c M for the M merged weights
                  trust region: 40 bytes a parameter in place of 12: ten vectors, none of Adam's
    conversations 2 c L K tokens       keys and values of what is played side by side
    activations   c L (16 D + 2 K + 4 I) tokens of a micro-batch (norms keep float32 copies), of
                  two rows with pairs
    critic        with a model of its own: its c P weights, its part of the optimizer without frozen
                  copy and head, and its activations, which are there beside the policy's
    process       Python, torch and transformers themselves

`process` and the factor of D are fitted to measured peaks, the rest is counted. The memory guide
has a table of the formula beside what was measured (`python -m benchmarks.memory_needs` makes it).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stateset_agents.training.algorithms import ALGORITHMS
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.model_size import estimated_parameters

GIB = 2**30
PROCESS_BYTES = 0.6 * GIB
ENGINE_SLOTS = 64  # sequences whose keys and values the engine keeps, at most


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a config.json decides memory. `key_width` is of all key heads together."""

    parameters: float
    layers: int
    hidden: int
    inner: int
    key_width: int
    max_positions: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes by part; `total` is their sum, an estimate of the process's peak."""

    weights: float
    optimizer: float
    conversations: float
    activations: float
    critic: float = 0.0
    process: float = PROCESS_BYTES

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return sum(float(getattr(self, field.name)) for field in fields(self))


def read_shape(model: Path) -> ModelShape | None:
    """The shape of the model in a folder; None where its config.json does not tell."""
    path = model / "config.json"
    if not path.is_file():
        return None
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    parameters = estimated_parameters(str(model))
    hidden = config.get("hidden_size") or config.get("n_embd")
    layers = config.get("num_hidden_layers") or config.get("n_layer")
    if parameters is None or not hidden or not layers:
        return None
    heads = config.get("num_attention_heads") or config.get("n_head") or 1
    key_heads = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or hidden // heads
    inner = config.get("intermediate_size") or config.get("n_inner") or 4 * hidden
    positions = config.get("max_position_embeddings") or config.get("n_positions") or 0
    vocabulary = config.get("vocab_size") or 0
    return ModelShape(parameters, layers, hidden, inner, key_heads * head, positions, vocabulary)


def memory_need(
    shape: ModelShape, config: TrainingConfig, *, bf16: bool = True, packs_weights: bool = True
) -> MemoryNeed:
    """What training with `config` needs, in one process on one device.

    Args:
        shape: of the base model.
        config: the settings.
        bf16: whether the hardware computes in bfloat16; with `config.bf16` off it does not matter.
        packs_weights: whether the engine packs its weights where they are bfloat16, as on a
            processor; a GPU has no packed copy.
    """
    size = 2 if (config.bf16 and bf16) or config.fp16 else 4
    # as many sequences as the engine keeps, each as long as a row may become
    tokens = config.max_prompt_length + config.max_completion_length
    if shape.max_positions:
        tokens = min(tokens, shape.max_positions)
    sequences = min(config.groups_per_step * config.num_generations, ENGINE_SLOTS)
    if config.pairs_from == "preferences":
        sequences = 0
    copies = 3.0 if size == 2 and packs_weights else 2.0
    return MemoryNeed(
        weights=copies * size * shape.parameters,
        optimizer=_optimizer_bytes(shape, config, size) + _extra_bytes(shape, config, size),
        conversations=2.0 * size * shape.layers * shape.key_width * tokens * sequences,
        activations=_activation_bytes(shape, config, size, tokens),
        critic=_critic_bytes(shape, config, size, tokens),
    )


def _activation_bytes(shape: ModelShape, config: TrainingConfig, size: int, tokens: int) -> float:
    at_once = max(config.micro_batch_tokens, tokens)
    if ALGORITHMS[config.algorithm].on_pairs:
        at_once = 2 * tokens  # a pair goes through the model whole, and alone
    per_token = 16 * shape.hidden + 2 * shape.key_width + 4 * shape.inner
    return float(size * shape.layers * per_token * at_once)


def _critic_bytes(policy: ModelShape, config: TrainingConfig, size: int, tokens: int) -> float:
    row = ALGORITHMS[config.algorithm]
    if (config.advantage_baseline or row.advantage_baseline) != "value" or config.critic != "own":
        return 0.0
    given = None if config.critic_model is None else read_shape(Path(config.critic_model))
    shape = given or policy
    by_adam = config.model_copy(update={"algorithm": "ppo"})
    return (
        size * shape.parameters
        + _optimizer_bytes(shape, by_adam, size)
        + _activation_bytes(shape, by_adam, size, tokens)
    )


def _optimizer_bytes(shape: ModelShape, config: TrainingConfig, size: int) -> float:
    """What a model that is trained needs beside its weights and activations."""
    steps = 40.0 if ALGORITHMS[config.algorithm].trust_region else 12.0
    if not config.use_lora:
        return (steps + (4 if size == 2 else 0)) * shape.parameters
    width_in_and_out = [
        (shape.hidden, shape.hidden),
        (shape.hidden, shape.key_width),
        (shape.hidden, shape.key_width),
        (shape.hidden, shape.hidden),
        *2 * [(shape.hidden, shape.inner)],
        (shape.inner, shape.hidden),
    ]
    adapter = shape.layers * config.lora_r * sum(a + b for a, b in width_in_and_out)
    merged = shape.layers * sum(a * b for a, b in width_in_and_out)
    return (steps + 4) * adapter + float(size * merged)


def _extra_bytes(shape: ModelShape, config: TrainingConfig, size: int) -> float:
    """The frozen copy and the gradient of the head, which only all weights together need."""
    if config.use_lora:
        return 0.0
    is_measured = config.kl_coefficient > 0 or config.kl_sample_rows > 0
    is_kept = is_measured or ALGORITHMS[config.algorithm].on_pairs
    return (size * shape.parameters if is_kept else 0) + 12.0 * shape.vocabulary * shape.hidden
