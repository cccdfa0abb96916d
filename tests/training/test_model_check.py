"""What does not fit the model is one message before anything is played."""

from __future__ import annotations

from pathlib import Path

import pytest

from stateset_agents.exceptions import ConfigurationError
from stateset_agents.inference.loading import load_model
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.model_check import check_model
from tests.training.runs import make_trainer, train


def test_a_prompt_longer_than_the_models_positions_and_every_target_it_lacks_are_told_together(
    tiny_model_dir: Path,
) -> None:
    model = load_model(tiny_model_dir)
    config = TrainingConfig(
        max_prompt_length=2048,
        use_lora=True,
        lora_target_modules=["q_proj", "c_attn", "c_proj", "proj"],
    )

    with pytest.raises(ConfigurationError) as caught:
        check_model(model, config)

    positions, targets = caught.value.problems
    assert "max_prompt_length=2048, and LlamaForCausalLM has 2048 positions" in positions
    assert "no linear layer c_attn, c_proj, proj: choose from" in targets
    assert "'k_proj'" in targets


def test_settings_that_fit_pass(tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir)

    check_model(model, TrainingConfig(max_prompt_length=2047))
    check_model(
        model, TrainingConfig(use_lora=True, lora_target_modules=["q_proj", "self_attn.v_proj"])
    )


def test_a_run_asks_before_it_plays(tiny_model_dir: Path) -> None:
    trainer = make_trainer(tiny_model_dir, max_prompt_length=5000)

    with pytest.raises(ConfigurationError, match="max_prompt_length=5000"):
        train(trainer)
    assert trainer.groups == []
