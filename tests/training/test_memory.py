"""What a run needs, worked out by hand for a model of round numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.memory import PROCESS_BYTES, ModelShape, memory_need, read_shape
from tests.tiny_model import make_tiny_tokenizer

# a million parameters, 10 layers
SHAPE = ModelShape(
    parameters=1e6,
    layers=10,
    hidden=100,
    inner=200,
    key_width=50,
    max_positions=2048,
    vocabulary=1000,
)
CONFIG = TrainingConfig(
    num_episodes=8,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=1,
    num_generations=4,
    max_prompt_length=300,
    max_completion_length=200,
    micro_batch_tokens=1000,
)


def test_full_training_in_bfloat16_by_hand() -> None:
    need = memory_need(SHAPE, CONFIG)
    assert need.weights == 3 * 2 * 1e6  # the policy's, the engine's, and these packed
    # the head's gradient: 100,000 numbers
    assert need.optimizer == (16 + 2) * 1e6 + 12 * 1e5
    # keys and values of 8 conversations of 500 tokens
    assert need.conversations == 2 * 2 * 10 * 50 * 500 * 8
    assert need.activations == 2 * 10 * (16 * 100 + 2 * 50 + 4 * 200) * 1000
    assert need.total == pytest.approx(
        need.weights + need.optimizer + need.conversations + need.activations + PROCESS_BYTES
    )


@pytest.mark.parametrize(
    ("change", "part", "becomes"),
    [
        ({"bf16": False}, "weights", 2 * 4 * 1e6),
        ({"bf16": False}, "optimizer", (12 + 4) * 1e6 + 12 * 1e5),
        ({"kl_sample_rows": 0}, "optimizer", 16 * 1e6 + 12 * 1e5),
        ({"num_generations": 2}, "conversations", 2 * 2 * 10 * 50 * 500 * 4),
        ({"max_completion_length": 100}, "conversations", 2 * 2 * 10 * 50 * 400 * 8),
        # more than the model has positions cannot be
        ({"max_prompt_length": 9000}, "conversations", 2 * 2 * 10 * 50 * 2048 * 8),
        ({"micro_batch_tokens": 2000}, "activations", 2 * 10 * 2500 * 2000),
        # one row goes through the model whole
        ({"micro_batch_tokens": 1}, "activations", 2 * 10 * 2500 * 500),
        # A = 10 layers x rank 2 x (200 + 150 + 150 + 200 + 300 + 300 + 300), M = 10 x 90,000
        (
            {"use_lora": True, "lora_r": 2},
            "optimizer",
            16 * 10 * 2 * 1600 + 2 * 10 * 90_000,
        ),
    ],
)
def test_each_setting_changes_its_part(
    change: dict[str, object], part: str, becomes: float
) -> None:
    config = TrainingConfig(**{**CONFIG.model_dump(), **change})
    need, before = memory_need(SHAPE, config), memory_need(SHAPE, CONFIG)
    assert getattr(need, part) == becomes
    assert getattr(need, part) != getattr(before, part)


# Weights of its own, what trains them, its activations: 10 layers of 2,500 numbers a token.
OWN_CRITIC = 2 * 1e6 + 16 * 1e6 + 2 * 10 * 2500 * 1000


@pytest.mark.parametrize(
    ("change", "part", "becomes"),
    [
        ({"algorithm": "ppo"}, "critic", 0),  # a head alone
        ({"algorithm": "ppo", "critic": "own"}, "critic", OWN_CRITIC),
        ({"advantage_baseline": "value", "critic": "own"}, "critic", OWN_CRITIC),
        (
            {"algorithm": "ppo", "critic": "own", "use_lora": True, "lora_r": 2},
            "critic",
            2 * 1e6 + 16 * 10 * 2 * 1600 + 2 * 10 * 90_000 + 2 * 10 * 2500 * 1000,
        ),
        # the reference that pairs are compared with
        ({"algorithm": "dpo"}, "optimizer", (16 + 2) * 1e6 + 12 * 1e5),
        ({"algorithm": "dpo"}, "activations", 2 * 10 * 2500 * 2 * 500),
        ({"algorithm": "dpo", "pairs_from": "preferences"}, "conversations", 0),
        ({"algorithm": "trpo", "bf16": False}, "optimizer", (40 + 4) * 1e6 + 12 * 1e5),
    ],
)
def test_what_an_algorithm_keeps_beside_the_policy_is_counted(
    change: dict[str, object], part: str, becomes: float
) -> None:
    config = TrainingConfig(**{**CONFIG.model_dump(exclude_unset=True), **change})
    assert getattr(memory_need(SHAPE, config), part) == becomes


def test_a_critics_model_is_counted_by_its_own_shape(tiny_model_dir: Path) -> None:
    tiny = read_shape(tiny_model_dir)
    assert tiny is not None
    config = TrainingConfig(algorithm="ppo", critic="own", critic_model=str(tiny_model_dir))
    as_the_policy = config.model_copy(update={"critic_model": None})
    assert memory_need(SHAPE, config).critic == memory_need(tiny, as_the_policy).critic


def test_a_gpu_s_engine_packs_no_copy_of_its_weights() -> None:
    assert memory_need(SHAPE, CONFIG, packs_weights=False).weights == 2 * 2 * 1e6


def test_a_shape_is_read_from_a_models_folder(tiny_model_dir: Path, tmp_path: Path) -> None:
    shape = read_shape(tiny_model_dir)
    assert shape is not None
    assert (shape.layers, shape.hidden, shape.inner) == (2, 64, 128)
    assert shape.key_width == 2 * 16
    assert shape.max_positions == 2048
    assert shape.vocabulary == len(make_tiny_tokenizer())
    assert read_shape(tmp_path) is None
