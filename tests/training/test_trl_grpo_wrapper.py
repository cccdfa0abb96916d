"""TRL's trainer plays our conversations, takes our steps, and says what it cannot do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stateset_agents.core.agent import MultiTurnAgent
from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.core.trajectory import ConversationTurn, Message
from stateset_agents.exceptions import ConfigurationError, TrainingError
from stateset_agents.inference.loading import load_model
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.gspo_trainer import GSPOConfig
from stateset_agents.training.trainer import Trainer
from stateset_agents.training.trl_config import grpo_settings
from stateset_agents.training.trl_grpo_wrapper import TRLGRPOTrainerWrapper
from tests.training.runs import SCENARIOS, LettersE, Remembered, make_agent

PENALTY = "reward/overlong_penalty_mean"
SETTINGS: dict[str, Any] = {
    "num_episodes": 2,
    "num_generations": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "adam_epsilon": 1e-4,
    "warmup_ratio": 0,
    "bf16": False,
    "logging_steps": 1,
    "save_steps": 0,
}


def make_wrapper(
    folder: Path, work: Path, agent: type[MultiTurnAgent] = MultiTurnAgent, **settings: Any
) -> TRLGRPOTrainerWrapper:
    return TRLGRPOTrainerWrapper(
        agent=make_agent(folder, agent),
        environment=ConversationEnvironment(SCENARIOS, max_turns=4),
        reward_fn=LettersE(),
        config=TrainingConfig(**{**SETTINGS, **settings}),
        output_dir=work / "trl",
        logger=Remembered(),
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "grpo", "use_lora": False, "kl_coefficient": 0.05},
        {"algorithm": "dapo", "use_lora": False, "resampling_rounds": 1, "micro_batch_tokens": 1},
    ],
    ids=["grpo, all in one micro-batch", "dapo, one row at a time"],
)
def test_the_first_step_is_that_of_our_trainer(
    tiny_model_dir: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    wrapper = make_wrapper(tiny_model_dir, tmp_path, **settings)
    ours = Trainer(
        make_agent(tiny_model_dir),
        wrapper.environment,
        LettersE(),
        TrainingConfig(**{**SETTINGS, **settings}),
        logger=Remembered(),
    )

    async def train() -> None:
        await wrapper.train()
        await ours.train()

    asyncio.run(train())

    theirs = wrapper.trainer.state.log_history[0]
    (_, mine), *_ = ours.logger.steps  # type: ignore[union-attr]
    assert theirs["reward"] == pytest.approx(mine["reward/mean"] - mine.get(PENALTY, 0), rel=1e-5)
    assert theirs["loss"] == pytest.approx(mine["policy/loss"], abs=1e-5)
    assert theirs["grad_norm"] == pytest.approx(mine["policy/grad_norm"], rel=1e-4)
    trained = dict(ours.policy.named_merged_weights())
    wrapped = dict(wrapper.trainer.model.named_parameters())
    untrained = dict(load_model(tiny_model_dir, dtype="float32").named_parameters())
    for name, weight in trained.items():
        torch.testing.assert_close(wrapped[name].detach(), weight, rtol=1e-5, atol=1e-5)
    moved = [name for name in trained if not torch.equal(trained[name], untrained[name])]
    assert len(moved) > len(trained) / 2


def test_an_adapter_learns_and_the_agent_speaks_with_it_and_it_can_be_loaded(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    wrapper = make_wrapper(
        tiny_model_dir,
        tmp_path,
        use_lora=True,
        num_episodes=40,
        num_generations=8,
        learning_rate=2e-2,
        adam_epsilon=1e-8,
        save_steps=20,
    )
    agent = wrapper.agent

    async def train() -> tuple[MultiTurnAgent, str, str]:
        await agent.initialize()
        question: list[Message] = [{"role": "user", "content": "Hello"}]
        agent.config.seed = 0
        before = await agent.generate_response(question)
        trained = await wrapper.train()
        return trained, before, await trained.generate_response(question)

    trained, before, after = asyncio.run(train())

    assert trained is agent
    assert before != after
    logged = wrapper._logger.steps
    rewards = [metrics["reward"] for _, metrics in logged if "reward" in metrics]
    assert len(rewards) == 20
    assert sum(rewards[-4:]) > 1.5 * sum(rewards[:4])
    wrapper.save(tmp_path / "final")
    saved = load_file(tmp_path / "final" / "adapter_model.safetensors")
    assert any(value.abs().max() > 0 for name, value in saved.items() if "lora_B" in name)
    assert (tmp_path / "trl" / "checkpoint-20").is_dir()


class Rewriting(MultiTurnAgent):
    """Forgets all but the last message, so no context carries on from another."""

    async def generate_response(self, messages: Sequence[Message]) -> str:
        return await super().generate_response(messages[-1:])


def test_a_conversation_that_is_more_than_one_row_is_an_error(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    wrapper = make_wrapper(tiny_model_dir, tmp_path, Rewriting)
    with pytest.raises(TrainingError, match=r"context was rewritten .* MultiTurnGRPOTrainer"):
        asyncio.run(wrapper.train())


class Failing(LettersE):
    """No number for one conversation of four."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> float:
        self.asked += 1
        return float("nan") if self.asked % 4 == 0 else await super().compute_reward(turns, context)


def test_a_conversation_without_a_reward_is_left_out_as_our_trainer_leaves_it_out(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    wrapper = make_wrapper(tiny_model_dir, tmp_path, algorithm="dapo", resampling_rounds=0)
    wrapper._player._reward_function = Failing()
    ours = Trainer(
        make_agent(tiny_model_dir),
        wrapper.environment,
        Failing(),
        wrapper.config,
        logger=Remembered(),
    )

    async def train() -> None:
        await wrapper.train()
        await ours.train()

    asyncio.run(train())
    (_, mine), *_ = ours.logger.steps  # type: ignore[union-attr]
    assert mine["reward/nonfinite"] == 2
    assert wrapper.trainer.state.log_history[0]["grad_norm"] == pytest.approx(
        mine["policy/grad_norm"], rel=1e-4
    )


# --- settings ------------------------------------------------------------------------------------


def settings_of(config: TrainingConfig, **overrides: Any) -> dict[str, Any]:
    return grpo_settings(config, temperature=0.7, overrides=overrides)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"algorithm": "grpo"}, {"loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.28}),
        ({"algorithm": "bnpo"}, {"loss_type": "dapo", "epsilon_high": 0.2}),
        ({"algorithm": "dr_grpo"}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
        (
            {"algorithm": "gspo"},
            {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4},
        ),
        ({"algorithm": "cispo"}, {"loss_type": "cispo", "epsilon_high": 5.0}),
        ({"algorithm": "sapo", "sapo_temperature_negative": 2.0}, {"sapo_temperature_neg": 2.0}),
        ({"loss_aggregation": "sequence_sum"}, {"loss_type": "luspo"}),
        ({"clip_range_left": 0.1, "clip_range_right": 0.3}, {"epsilon": 0.1, "epsilon_high": 0.3}),
        ({"ratio_cap": 4.0}, {"delta": 4.0}),
        ({"scale_advantages": False}, {"scale_rewards": "none"}),
        (
            {"beta": 0.04, "kl_bias_correction": True},
            {"beta": 0.04, "use_bias_correction_kl": True},
        ),
        ({"num_iterations": 3}, {"num_iterations": 3}),
        ({"num_episodes": 40, "num_epochs": 2}, {"max_steps": 20}),
        ({"warmup_ratio": 0.25, "num_episodes": 40}, {"warmup_steps": 3}),
        ({"lr_schedule": "cosine"}, {"lr_scheduler_type": "cosine"}),
        ({"learning_rate": 3e-4}, {"learning_rate": 3e-4}),
        ({"adam_beta1": 0.5, "adam_beta2": 0.6}, {"adam_beta1": 0.5, "adam_beta2": 0.6}),
        ({"adam_epsilon": 1e-3}, {"adam_epsilon": 1e-3}),
        ({"weight_decay": 0.1, "max_grad_norm": 0.5}, {"weight_decay": 0.1, "max_grad_norm": 0.5}),
        ({"seed": 3, "save_total_limit": 7}, {"seed": 3, "save_total_limit": 7}),
        ({"save_steps": 0}, {"save_strategy": "no"}),
        ({"save_steps": 5, "logging_steps": 2}, {"save_steps": 5, "logging_steps": 2}),
        (
            {"max_prompt_length": 512, "max_completion_length": 512, "micro_batch_tokens": 8192},
            {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 8},
        ),
        ({"micro_batch_tokens": 1}, {"per_device_train_batch_size": 1}),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)
def test_a_setting_of_ours_is_one_of_trls(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    found = settings_of(TrainingConfig(**ours))
    assert {name: found[name] for name in theirs} == theirs


def test_gspos_own_length_and_temperature_and_what_is_said_in_trls_words_arrive() -> None:
    found = settings_of(GSPOConfig(num_outer_iterations=7), top_entropy_quantile=0.5)
    assert found["max_steps"] == 7
    assert found["temperature"] == 0.7
    assert found["top_entropy_quantile"] == 0.5


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        ({"algorithm": "gspo_token"}, 'algorithm="gspo_token" has no counterpart'),
        ({"algorithm": "rloo"}, 'advantage_baseline="leave_one_out"'),
        ({"advantage_baseline": "none"}, 'advantage_baseline="none"'),
        ({"loss_aggregation": "token_sum"}, "TRL has sequence_mean, token_mean"),
        (
            {"algorithm": "sapo", "loss_aggregation": "token_mean"},
            "TRL has sequence_mean",
        ),
        ({"algorithm": "cispo", "clip_range_left": 0.5}, "TRL's CISPO has no lower clip"),
        ({"beta": 0.1, "kl_estimator": "k1"}, "by k3 alone"),
        ({"credit": "turn"}, "credit='turn' has no counterpart"),
        ({"off_policy_steps": 1}, "off_policy_steps=1 has no counterpart"),
        ({"warm_start_steps": 2}, "warm_start_steps=2 has no counterpart"),
        ({"importance_sampling_cap": 5.0}, "importance_sampling_cap=5.0 has no counterpart"),
        ({"share_prefix": False}, "share_prefix=False has no counterpart"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)
def test_what_trl_has_no_word_for_is_an_error(ours: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        settings_of(TrainingConfig(**ours))


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        ({"use_stub_model": True}, "a stub has no weights"),
        ({"temperature": 0.0}, "greedy answers are all alike"),
        ({"enable_context_compression": True}, "more than one row"),
    ],
)
def test_an_agent_that_cannot_be_trained_so_is_an_error(
    tiny_model_dir: Path, agent: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TRLGRPOTrainerWrapper(
            make_agent(tiny_model_dir, **agent),
            ConversationEnvironment(SCENARIOS),
            LettersE(),
            TrainingConfig(**SETTINGS),
        )
