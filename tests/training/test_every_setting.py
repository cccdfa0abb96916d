"""Every setting of training is read: changing it changes what the part that it is for comes to.

A field without an entry here fails, so that no setting can be added that nothing reads. Most
entries ask the function that reads the field; where that takes a whole run, they name the test that
makes one.
"""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.inference.loading import load_model, load_tokenizer
from stateset_agents.training.advantages import step_advantages
from stateset_agents.training.batching import StepRows, make_batch, micro_batches
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.critic import make_critic
from stateset_agents.training.demonstrations import Demonstration, demonstration_batch
from stateset_agents.training.gspo_trainer import GSPOConfig
from stateset_agents.training.objective import objective_of, weighted_loss
from stateset_agents.training.policy import Policy
from stateset_agents.training.rollouts import RolloutPlayer
from stateset_agents.training.scenario_order import scenarios_of_step
from stateset_agents.training.shaping import shape_rewards
from stateset_agents.training.step import learning_rate, make_learner, train_step
from tests.training.made import make_advantages, make_rows, to_batch
from tests.training.runs import SCENARIOS, LettersE

ROOT = Path(__file__).resolve().parents[2]
ROWS = make_rows()
Reader = Callable[[TrainingConfig, Path], object]


# --- readers: what the parts make of a config ---


def _noise(seed: int, scale: float, like: torch.Tensor) -> torch.Tensor:
    return scale * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def loss(config: TrainingConfig, folder: Path) -> object:
    """The loss of made conversations, off-policy and away from the reference."""
    objective = objective_of(config)
    generator = torch.Generator().manual_seed(3)
    step = StepRows(
        rows=ROWS,
        rewards=torch.rand(8, generator=generator, dtype=torch.float64),
        group_index=torch.arange(8) // 4,
        turn_rewards=torch.rand(8, 3, generator=generator).tolist(),
        answer_tokens=[[3, 9, 10]] + [[3, 4, 5]] * 7,
    )
    shaped = shape_rewards(step, max_new_tokens=10, buffer=objective.overlong_buffer)
    batch = make_batch(
        step,
        step_advantages(shaped, objective),
        loss_aggregation=objective.loss_aggregation,
        max_completion_length=config.max_completion_length,
        pad_token_id=2,
        temperature=1.0,
        keep_all_rows=True,
    )
    policy = batch.sampling_logprobs + _noise(0, 0.5, batch.sampling_logprobs) * batch.loss_mask
    batch = replace(
        batch,
        old_logprobs=policy + _noise(1, 0.5, policy) * batch.loss_mask,
        reference_logprobs=policy + _noise(2, 0.5, policy) * batch.loss_mask,
    )
    return float(weighted_loss(policy, batch, objective)[0])


def rates(config: TrainingConfig, folder: Path) -> object:
    """The learning rate of every step."""
    return [learning_rate(step, config) for step in range(config.total_steps)]


def order(config: TrainingConfig, folder: Path) -> object:
    """Which of a hundred scenarios the first step plays."""
    return scenarios_of_step(range(100), 0, 8, config.seed)


def played(config: TrainingConfig, folder: Path) -> object:
    """Groups of a step and conversations of a group, as they are played."""
    agent = MultiTurnAgent(AgentConfig(model_name="stub://x", use_stub_model=True))
    environment = ConversationEnvironment(SCENARIOS, max_turns=2)

    async def play() -> object:
        await agent.initialize()
        player = RolloutPlayer(agent, environment, LettersE(), config, lambda _: None)
        groups = (await player.play(0)).groups
        return len(groups), len(groups[0].trajectories)

    return asyncio.run(play())


def updated(config: TrainingConfig, folder: Path) -> object:
    """The weights after two steps, at the rate of the config."""
    learner = make_learner(Policy(load_model(folder, dtype="float32"), config), config)
    batch = to_batch(ROWS, make_advantages(ROWS))
    torch.manual_seed(0)
    for _ in range(2):
        train_step(learner, batch, rate=config.learning_rate)
    weights = dict(learner.policy.named_merged_weights())
    return sorted(weights), sum(float(value.double().abs().sum()) for value in weights.values())


def computed_in(config: TrainingConfig, folder: Path) -> object:
    """The number format of the model."""
    return Policy(load_model(folder, dtype="float32"), config).dtype


def has_reference(config: TrainingConfig, folder: Path) -> object:
    """Whether the policy keeps what training started from."""
    return Policy(load_model(folder, dtype="float32"), config).has_reference


def cut(config: TrainingConfig, folder: Path) -> object:
    """The rows of each micro-batch."""
    batch = to_batch(ROWS, make_advantages(ROWS))
    parts = micro_batches(
        batch, token_budget=config.micro_batch_tokens, share_prefix=config.share_prefix
    )
    return [rows.tolist() for rows in parts]


def demonstrated(config: TrainingConfig, folder: Path) -> object:
    """Demonstrations in one step of imitation."""
    asked = ({"role": "user", "content": "Where is it?"},)
    demonstrations = [Demonstration(asked, f"Answer {n}.") for n in range(8)]
    batch = demonstration_batch(demonstrations, 0, load_tokenizer(folder), config)
    return len(batch.row_lengths)


def length(config: TrainingConfig, folder: Path) -> object:
    """Batches of conversations in the run."""
    return config.total_steps


def values(config: TrainingConfig, folder: Path) -> object:
    """What a critic of constant values makes of advantages and of its own error."""
    policy = Policy(load_model(folder, dtype="float32"), config)
    critic = make_critic(policy, config, str(folder), None)
    assert critic is not None
    advantages, _ = critic.value_function.advantages(torch.ones(1, 3), torch.full((1, 3), 0.5))
    batch = to_batch(ROWS, make_advantages(ROWS))
    batch = replace(
        batch,
        old_values=batch.loss_mask.float(),
        returns=torch.zeros_like(batch.loss_weights),
        value_weights=batch.loss_mask.float(),
    )
    states = torch.zeros(int(batch.loss_mask.sum()), policy.head_weight.shape[1])
    return advantages.tolist(), critic.loss(states, batch, share_prefix=False).item()


def plan(config: TrainingConfig, folder: Path) -> object:
    """What reports are told."""
    return config.report_plan({})


# --- the table ---

KL = {"kl_coefficient": 0.5}
MASK = {"importance_sampling": "mask", "importance_sampling_cap": 1.5}
LORA = {"use_lora": True, "learning_rate": 1e-3}
PPO = {"algorithm": "ppo"}
SAPO = {"algorithm": "sapo"}

# Field: who reads it, what both configs have, and the two values.
READ: dict[str, tuple[Reader, dict[str, Any], Any, Any]] = {
    "algorithm": (loss, {}, "grpo", "cispo"),
    "seed": (order, {}, 0, 1),
    "num_episodes": (length, {}, 8, 16),
    "num_epochs": (length, {}, 1, 2),
    "per_device_train_batch_size": (played, {"gradient_accumulation_steps": 1}, 1, 2),
    "gradient_accumulation_steps": (played, {}, 1, 2),
    "num_generations": (played, {"gradient_accumulation_steps": 1}, 2, 3),
    "warm_start_batch_size": (demonstrated, {}, 2, 3),
    "learning_rate": (rates, {}, 1e-5, 1e-4),
    "lr_schedule": (rates, {"gradient_accumulation_steps": 1}, "constant", "cosine"),
    "warmup_ratio": (rates, {"gradient_accumulation_steps": 1}, 0.0, 0.5),
    "adam_beta1": (updated, {"learning_rate": 1e-2}, 0.9, 0.1),
    "adam_beta2": (updated, {"learning_rate": 1e-2}, 0.99, 0.1),
    "adam_epsilon": (updated, {"learning_rate": 1e-2}, 1e-8, 1.0),
    "weight_decay": (updated, {"learning_rate": 1e-2}, 0.0, 0.5),
    "max_grad_norm": (updated, {"learning_rate": 1e-2, "adam_epsilon": 1e-3}, 1.0, 1e-6),
    "max_completion_length": (loss, {"loss_aggregation": "fixed_length"}, 64, 128),
    "advantage_baseline": (loss, {}, "group", "batch"),
    "scale_advantages": (loss, {}, True, False),
    "overlong_buffer": (loss, {}, 0.0, 0.5),
    "credit": (loss, {}, "episode", "turn"),
    "turn_discount": (loss, {"credit": "turn"}, 0.0, 0.9),
    "loss_aggregation": (loss, {}, "sequence_mean", "token_mean"),
    "clip_range_left": (loss, {}, 0.2, 0.01),
    "clip_range_right": (loss, {}, 0.2, 0.01),
    "ratio_cap": (loss, {}, None, 1.05),
    "sapo_temperature_positive": (loss, SAPO, 1.0, 5.0),
    "sapo_temperature_negative": (loss, SAPO, 1.0, 5.0),
    "kl_coefficient": (loss, {}, 0.0, 0.5),
    "kl_estimator": (loss, KL, "k1", "k3"),
    "kl_bias_correction": (loss, KL, False, True),
    "kl_sample_rows": (has_reference, {}, 0, 2),
    "importance_sampling": (loss, {"importance_sampling_cap": 1.1}, "truncate", "mask"),
    "importance_sampling_level": (loss, {}, "token", "sequence"),
    "importance_sampling_cap": (loss, {}, 1.1, None),
    "importance_sampling_floor": (loss, MASK, 0.0, 0.9),
    "bf16": (computed_in, {}, False, True),
    "fp16": (computed_in, {}, False, True),
    "micro_batch_tokens": (cut, {"share_prefix": False}, 64, 4096),
    "share_prefix": (cut, {"micro_batch_tokens": 100}, False, True),
    "use_lora": (updated, {"learning_rate": 1e-3}, False, True),
    "lora_r": (updated, LORA, 2, 8),
    "lora_alpha": (updated, LORA, 8, 64),
    "lora_dropout": (updated, LORA, 0.0, 0.5),
    "lora_target_modules": (updated, LORA, ["q_proj"], "all-linear"),
    "report_to": (plan, {}, "none", ["wandb", "mlflow"]),
    "wandb_project": (plan, {"report_to": "wandb"}, None, "mine"),
    "run_name": (plan, {}, None, "first"),
    "logging_dir": (plan, {}, "runs", "elsewhere"),
    "discount": (values, PPO, 1.0, 0.5),
    "trace_decay": (values, PPO, 0.95, 0.5),
    "value_clip": (values, PPO, 0.2, 0.5),
    "num_outer_iterations": (length, {}, 5, 7),
}

# Field: the test with the run that shows it.
SHOWN_BY = {
    "kl_limit": "test_trust_region.py::test_every_step_taken_keeps_the_limit_and_gains",
    "fisher_iterations": "test_trust_region.py::"
    "test_the_direction_is_that_of_an_exact_fisher_solve",
    "fisher_damping": "test_trust_region.py::"
    "test_the_critic_learns_beside_it_and_fewer_fisher_rows_and_damping_change_the_step",
    "fisher_rows": "test_trust_region.py::"
    "test_the_critic_learns_beside_it_and_fewer_fisher_rows_and_damping_change_the_step",
    "line_search_tries": "test_trust_region.py::"
    "test_where_no_try_gains_anything_the_weights_stay_bit_for_bit",
    "pairs_from": "test_preferences.py::"
    "test_pairs_without_an_algorithm_for_them_and_the_reverse_are_errors",
    "pair_loss": "test_pair_step.py::"
    "test_a_steps_gradient_is_that_of_the_mean_pair_loss_over_whole_conversations",
    "pair_beta": "test_pair_step.py::"
    "test_a_steps_gradient_is_that_of_the_mean_pair_loss_over_whole_conversations",
    "pair_label_smoothing": "test_pair_step.py::"
    "test_a_steps_gradient_is_that_of_the_mean_pair_loss_over_whole_conversations",
    "critic": "test_critic.py::"
    "test_a_critic_of_its_own_learns_beside_the_policy_and_moves_it_by_advantages_alone",
    "critic_model": "test_critic.py::test_a_critic_of_another_vocabulary_is_an_error",
    "critic_learning_rate": "test_critic.py::test_the_head_learns_at_the_critics_own_rate",
    "value_coefficient": "test_critic.py::"
    "test_the_value_loss_reaches_the_policy_as_far_as_value_coefficient_says",
    "value_level": "test_critic.py::test_a_critic_of_answers_has_one_decision_for_each",
    "kl_placement": "test_critic.py::test_a_kl_term_in_the_reward_costs_what_the_sampler_gave_up",
    "warm_start_steps": "test_demonstrations.py::"
    "test_a_warm_start_makes_the_demonstrated_answers_likelier",
    "num_iterations": "test_trainer.py::test_several_optimizer_steps_on_one_batch_are_off_policy",
    "off_policy_steps": "test_rollouts.py::"
    "test_a_step_ahead_means_the_weights_before_the_last_update",
    "resampling_rounds": "test_rollouts.py::"
    "test_a_group_without_spread_is_replaced_by_one_of_a_further_scenario",
    "max_prompt_length": "test_trainer.py::"
    "test_openings_that_are_all_too_long_are_an_error_that_says_what_to_do",
    "sampling_difference_limit": "test_trainer.py::"
    "test_a_run_warns_once_when_the_engine_samples_from_another_policy",
    "eval_steps": "test_held_out.py::"
    "test_every_so_many_steps_and_at_the_end_held_out_scenarios_are_played",
    "eval_max_scenarios": "test_held_out.py::"
    "test_every_so_many_steps_and_at_the_end_held_out_scenarios_are_played",
    "save_steps": "test_callbacks.py::test_how_often_and_how_many_the_config_says",
    "save_total_limit": "test_callbacks.py::test_how_often_and_how_many_the_config_says",
    "logging_steps": "test_held_out.py::test_between_entries_nothing_is_logged_but_evaluations",
}

SMALL: dict[str, Any] = {"num_generations": 2, "num_episodes": 8, "bf16": False}


def test_every_setting_has_an_entry_and_every_entry_a_setting() -> None:
    fields = {*TrainingConfig.model_fields, *GSPOConfig.model_fields}

    assert fields == {*READ, *SHOWN_BY}
    assert not {*READ} & {*SHOWN_BY}


@pytest.mark.parametrize("field", READ)
def test_changing_a_setting_changes_what_reads_it(field: str, tiny_model_dir: Path) -> None:
    reader, both, first, second = READ[field]
    kind: type[TrainingConfig] = TrainingConfig
    base = {**SMALL, **both}
    if field not in TrainingConfig.model_fields:
        kind, base = GSPOConfig, {"num_generations": 2}
    one, other = kind(**{**base, field: first}), kind(**{**base, field: second})

    before, after = reader(one, tiny_model_dir), reader(other, tiny_model_dir)

    assert before != after
    # the same when it is assigned after construction
    setattr(one, field, second)
    assert reader(one, tiny_model_dir) == after


@pytest.mark.parametrize("field", SHOWN_BY)
def test_the_run_that_shows_a_setting_is_there_and_sets_it(field: str) -> None:
    file, name = SHOWN_BY[field].split("::")
    tree = ast.parse((ROOT / "tests" / "training" / file).read_text())
    functions = {
        node.name: ast.unparse(node)
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }

    assert field in functions[name]
