"""The loop: it learns, it measures, it stops before it breaks something."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.exceptions import (
    ConfigurationError,
    ModelSourceError,
    NonFiniteLossError,
    RolloutError,
    TrainingError,
)
from stateset_agents.inference.loading import load_model
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.conversation_samples import ConversationSamples
from stateset_agents.training.multi_turn_trainer import MultiTurnGRPOTrainer
from stateset_agents.training.step import learning_rate, train_step
from stateset_agents.training.trainer import Trainer
from tests.training.made import make_advantages, make_learner_for, make_rows, to_batch
from tests.training.runs import (
    SCENARIOS,
    LettersE,
    Remembered,
    make_agent,
    make_trainer,
    train,
)

SMALL = {"num_episodes": 2, "num_generations": 4}


class Constant(LettersE):
    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> float:
        return 0.5


# Each holds from the seeds 0 to 9. An adapter learns slowly, and Adam moves all of it by the rate,
# signal or noise: twenty steps of 16 conversations were luck (4 of 10 seeds), ten of 32 are not.
@pytest.mark.parametrize(
    ("settings", "rise"),
    [
        (
            {
                "algorithm": "grpo",
                "use_lora": True,
                "learning_rate": 2e-2,
                "num_episodes": 10,
                "gradient_accumulation_steps": 1,
                "num_generations": 32,
            },
            1.4,
        ),
        ({"algorithm": "gspo", "use_lora": False, "learning_rate": 1e-2}, 1.8),
        ({"use_lora": False, "learning_rate": 1e-2, "off_policy_steps": 1}, 1.8),
    ],
    ids=["grpo with an adapter", "gspo with all weights", "a step ahead"],
)
def test_a_simple_reward_goes_up(
    tiny_model_dir: Path, settings: dict[str, Any], rise: float
) -> None:
    logger = Remembered()
    twenty_steps = {
        "num_episodes": 40,
        "gradient_accumulation_steps": 2,
        "num_generations": 8,
        "warmup_ratio": 0,
    }
    trainer = make_trainer(
        tiny_model_dir,
        logger=logger,
        **{**twenty_steps, **settings},
    )

    train(trainer)

    rewards = [metrics["reward/mean"] for _, metrics in logger.steps]
    fifth = len(rewards) // 5
    assert sum(rewards[-fifth:]) > rise * sum(rewards[:fifth])
    assert trainer.best is not None
    assert trainer.best[0] == max(rewards)


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "grpo", "use_lora": True, "learning_rate": 5e-2},
        {"algorithm": "gspo", "use_lora": False, "learning_rate": 1e-2, "num_iterations": 2},
    ],
    ids=["grpo with an adapter", "gspo with all weights"],
)
def test_recomputed_log_probs_are_those_the_engine_sampled_with(
    tiny_model_dir: Path, settings: dict[str, Any]
) -> None:
    logger = Remembered()
    train(make_trainer(tiny_model_dir, logger=logger, num_episodes=6, **settings))

    for _, metrics in logger.steps:
        assert metrics["rollout/answers_mean"] > 1
        assert metrics["policy/sampling_difference_max"] < 2e-5
        assert metrics["policy/sampling_difference_mean"] < 2e-6
        assert metrics["policy/sampling_ratio_mean"] == pytest.approx(1, abs=2e-6)
    # so a policy that had not reached the engine would have been seen
    assert logger.steps[-1][1]["policy/kl_to_reference"] > 0.01


def test_a_run_warns_once_when_the_engine_samples_from_another_policy(
    tiny_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(make_trainer(tiny_model_dir, **SMALL))
    assert not caplog.records

    train(make_trainer(tiny_model_dir, **SMALL, lora_dropout=0.9, learning_rate=0.5))

    (record,) = caplog.records
    assert re.match(
        r"step 2: the log-probs .* differ from training's by \d\S+ nats on the mean of the tokens; "
        r"sampling_difference_limit is 0.1. .*lora_dropout",
        record.getMessage(),
    )


async def test_a_second_trainer_of_an_agent_says_that_it_starts_over(
    tiny_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = make_trainer(tiny_model_dir, **SMALL)
    second = Trainer(first.agent, first.environment, first.reward_function, first.config)
    await first.train()
    assert not caplog.records

    await second.train()

    await first.agent.engine.aclose()
    (record,) = caplog.records
    assert "starts from" in record.getMessage()
    assert "give train() a checkpoint in resume_from" in record.getMessage()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
    ],
)
def test_the_rate_rises_over_the_warm_up_and_then_follows_its_schedule(
    schedule: str, expected: list[float]
) -> None:
    config = TrainingConfig(
        num_episodes=6,
        gradient_accumulation_steps=1,
        learning_rate=2.0,
        warmup_ratio=0.3,  # of 6 steps: 1.8, so 2
        lr_schedule=schedule,  # type: ignore[arg-type]
    )

    rates = [learning_rate(step, config) for step in range(6)]

    assert rates == pytest.approx([2 * share for share in expected])


def test_each_step_has_the_rate_of_its_place_in_the_schedule(tiny_model_dir: Path) -> None:
    logger = Remembered()
    train(make_trainer(tiny_model_dir, logger=logger, lr_schedule="linear", warmup_ratio=0))

    rates = [metrics["policy/learning_rate"] for _, metrics in logger.steps]
    assert rates == pytest.approx([1e-2, 0.75e-2, 0.5e-2, 0.25e-2])


def test_with_a_kl_term_rows_without_advantage_are_trained_on_too(tiny_model_dir: Path) -> None:
    logger = Remembered()
    train(
        make_trainer(tiny_model_dir, reward=Constant(), logger=logger, **SMALL, kl_coefficient=0.1)
    )

    assert [metrics["rows/trained"] for _, metrics in logger.steps] == [4, 4]


def test_the_samples_for_people_hold_each_groups_best_and_worst(tiny_model_dir: Path) -> None:
    samples = ConversationSamples()
    train(make_trainer(tiny_model_dir, num_episodes=5, num_generations=8), [samples])

    text = samples.to_markdown()
    assert re.findall(r"^## Step (\d)", text, re.M) == ["1", "2", "5"]
    rewards = [float(found) for found in re.findall(r"^Reward ([\d.]+)", text, re.M)]
    assert len(rewards) == 6
    assert all(best > worst for best, worst in zip(rewards[::2], rewards[1::2], strict=True))


def test_every_number_that_is_promised_is_logged_each_step(tiny_model_dir: Path) -> None:
    logger = Remembered()
    train(make_trainer(tiny_model_dir, logger=logger, **SMALL))

    assert [step for step, _ in logger.steps] == [1, 2]
    expected = {
        *("reward/mean", "reward/std", "reward/within_group_std", "reward/parts/LettersE"),
        *("reward/groups_without_spread", "policy/kl_to_reference", "policy/clipped_fraction"),
        *("policy/entropy", "policy/grad_norm", "policy/learning_rate", "rollout/failed"),
        *("rollout/answer_tokens_mean", "rollout/conversation_tokens_mean"),
        *("rollout/truncated_fraction", "tokens_per_second/rollout", "tokens_per_second/update"),
        *("seconds/rollout", "seconds/reward", "seconds/update", "seconds/push_weights"),
        *("policy/sampling_difference_mean", "policy/sampling_difference_max"),
    }
    for _, metrics in logger.steps:
        assert expected <= metrics.keys()
        assert all(math.isfinite(value) for value in metrics.values())


def test_the_agent_that_was_passed_in_speaks_with_the_trained_weights(
    tiny_model_dir: Path,
) -> None:
    agent = make_agent(tiny_model_dir)
    config = TrainingConfig(
        **SMALL, gradient_accumulation_steps=1, learning_rate=0.1, use_lora=True, bf16=False
    )
    trainer = MultiTurnGRPOTrainer(
        agent=agent,
        environment=ConversationEnvironment(SCENARIOS, max_turns=4),
        reward_function=LettersE(),
        config=config,
    )
    train(trainer)

    base = load_model(tiny_model_dir, dtype="float32").state_dict()
    for name, merged in trainer.policy.named_merged_weights():
        assert not torch.equal(merged, base[name]), name


def test_equal_rewards_everywhere_leave_the_weights_alone(tiny_model_dir: Path) -> None:
    logger = Remembered()
    trainer = make_trainer(tiny_model_dir, reward=Constant(), logger=logger, **SMALL)
    before = {name: value.detach().clone() for name, value in trainer.policy.trainable.items()}

    after = train(trainer)

    assert all(torch.equal(value, after[name]) for name, value in before.items())
    for _, metrics in logger.steps:
        assert metrics["reward/groups_without_spread"] == 1
        assert metrics["rows/without_advantage"] == 4
        assert metrics["rows/trained"] == 0


class FailsAtTimes(MultiTurnAgent):
    """Raises in every second answer."""

    def __init__(self, config: AgentConfig, every: int) -> None:
        super().__init__(config)
        self._calls, self._every = 0, every

    async def generate_response(self, messages: Any) -> str:
        self._calls += 1
        if self._calls % self._every == 0:
            raise RuntimeError("no answer")
        return await super().generate_response(messages)


def failing_trainer(folder: Path, every: int, logger: Remembered) -> Trainer:
    config = AgentConfig(model_name=str(folder), max_new_tokens=8, torch_dtype="float32")
    return Trainer(
        FailsAtTimes(config, every),
        ConversationEnvironment(SCENARIOS, max_turns=4),
        LettersE(),
        TrainingConfig(**SMALL, gradient_accumulation_steps=1, use_lora=True, bf16=False),
        logger=logger,  # type: ignore[arg-type]
    )


def test_failed_conversations_are_left_out_and_counted(tiny_model_dir: Path) -> None:
    logger = Remembered()
    train(failing_trainer(tiny_model_dir, 5, logger))

    for _, metrics in logger.steps:
        assert metrics["rollout/failed"] >= 1
        assert metrics["rows/trained"] == 4 - metrics["rollout/failed"]


def test_a_step_in_which_everything_fails_ends_training_with_the_reason(
    tiny_model_dir: Path,
) -> None:
    with pytest.raises(RolloutError, match="no answer"):
        train(failing_trainer(tiny_model_dir, 1, Remembered()))


def test_a_loss_that_is_no_number_stops_before_the_optimizer(tiny_model_dir: Path) -> None:
    rows = make_rows()
    batch = to_batch(rows, torch.full((8,), math.nan))
    learner = make_learner_for(tiny_model_dir, use_lora=True)
    before = {n: value.detach().clone() for n, value in learner.policy.trainable.items()}

    with pytest.raises(NonFiniteLossError, match="the loss is nan; the optimizer was not stepped"):
        train_step(learner, batch, rate=1.0)

    assert all(torch.equal(v, learner.policy.trainable[n]) for n, v in before.items())
    good = train_step(learner, to_batch(rows, make_advantages(rows)), rate=1.0)
    assert math.isfinite(good.metrics["loss"])


def test_openings_that_are_all_too_long_are_an_error_that_says_what_to_do(
    tiny_model_dir: Path,
) -> None:
    with pytest.raises(TrainingError, match=r"max_prompt_length=3 .*raise max_prompt_length"):
        train(make_trainer(tiny_model_dir, max_prompt_length=3, **SMALL))


def test_an_agent_that_cannot_be_trained_is_refused_with_every_reason() -> None:
    config = AgentConfig(model_name="stub://x", use_stub_model=True, temperature=0)

    with pytest.raises(ConfigurationError) as caught:
        Trainer(
            MultiTurnAgent(config),
            ConversationEnvironment(SCENARIOS),
            LettersE(),
            TrainingConfig(),
        )

    assert len(caught.value.problems) == 2


def test_several_optimizer_steps_on_one_batch_are_off_policy(tiny_model_dir: Path) -> None:
    logger = Remembered()
    train(
        make_trainer(tiny_model_dir, logger=logger, **SMALL, num_iterations=3, learning_rate=5e-2)
    )

    assert all(metrics["policy/ratio_max"] > 1 for _, metrics in logger.steps)


@pytest.mark.real_model
def test_two_steps_on_the_real_model_move_it_towards_the_reward(smollm2_dir: Path) -> None:
    logger = Remembered()
    trainer = Trainer(
        MultiTurnAgent(AgentConfig(model_name=str(smollm2_dir), max_new_tokens=12)),
        ConversationEnvironment(SCENARIOS, max_turns=4),
        LettersE(),
        TrainingConfig(
            **SMALL,
            gradient_accumulation_steps=1,
            learning_rate=3e-3,
            warmup_ratio=0,
            use_lora=True,
            logging_steps=1,
        ),
        logger=logger,  # type: ignore[arg-type]
    )
    train(trainer)

    assert [step for step, _ in logger.steps] == [1, 2]
    first, second = (metrics for _, metrics in logger.steps)
    assert 0 < first["policy/grad_norm"] < 100
    assert first["policy/sampling_difference_mean"] < 0.1
    assert second["policy/sampling_difference_mean"] < 0.1
    # the first is measured before anything has changed: what is there is bfloat16's rounding
    assert first["policy/kl_to_reference"] < 0.01
    assert second["policy/kl_to_reference"] > 3 * first["policy/kl_to_reference"]


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="nowhere is not a folder"):
        train(make_trainer(tmp_path / "nowhere", **SMALL))
