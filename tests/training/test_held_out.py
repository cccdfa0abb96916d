"""Evaluation during training: on scenarios held out, the same each time, and nothing else moves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.callbacks import EarlyStoppingCallback, TrainingCallback
from stateset_agents.training.trainer import Trainer
from tests.training.runs import LettersE, Remembered, make_trainer, train

HELD_OUT: list[dict[str, Any]] = [
    {"id": f"refund-{n}", "user_responses": [f"Can I return lamp {n}?"]} for n in range(3)
]
SMALL = {"num_generations": 2, "logging_steps": 100}


class Asked(LettersE):
    """Remembers which scenarios it was asked about."""

    def __init__(self) -> None:
        super().__init__(name="letters")
        self.scenarios: list[str] = []

    async def compute_reward(self, turns: Any, context: dict[str, Any] | None = None) -> float:
        self.scenarios.append((context or {})["scenario"]["id"])
        return await super().compute_reward(turns, context)


def test_every_so_many_steps_and_at_the_end_held_out_scenarios_are_played(
    tiny_model_dir: Path,
) -> None:
    logger, reward = Remembered(), Asked()
    trainer = make_trainer(
        tiny_model_dir,
        reward=reward,
        logger=logger,
        eval_scenarios=HELD_OUT,
        num_episodes=3,
        eval_steps=2,
        eval_max_scenarios=2,
        **SMALL,
    )
    train(trainer)

    evaluated = [step for step, metrics in logger.steps if "eval/reward/mean" in metrics]
    assert evaluated == [2, 3]
    assert reward.scenarios.count("refund-0") == reward.scenarios.count("refund-1") == 2
    assert "refund-2" not in reward.scenarios
    assert logger.steps[-1][1]["eval/rollout/episodes"] == 2


def test_evaluation_changes_no_weight_and_meets_the_same_random_numbers_each_time(
    tiny_model_dir: Path,
) -> None:
    settings: dict[str, Any] = {"num_episodes": 3, "learning_rate": 1e-9, **SMALL}
    logger = Remembered()
    looked_at = make_trainer(
        tiny_model_dir, logger=logger, eval_scenarios=HELD_OUT, eval_steps=1, **settings
    )
    plain = make_trainer(tiny_model_dir, **settings)

    one, other = train(looked_at), train(plain)

    assert all(one[name].equal(other[name]) for name in other)
    # at a rate of nearly nothing the policy stays, so its answers do, and so does their reward
    assert len({metrics["eval/reward/mean"] for _, metrics in logger.steps}) == 1


def test_another_environment_has_its_own_scenarios(tiny_model_dir: Path) -> None:
    reward = Asked()
    trainer = make_trainer(
        tiny_model_dir,
        reward=reward,
        eval_environment=ConversationEnvironment(HELD_OUT, max_turns=2),
        num_episodes=1,
        eval_steps=1,
        **SMALL,
    )
    train(trainer)

    assert {name for name in reward.scenarios if name.startswith("refund")} == {
        "refund-0",
        "refund-1",
        "refund-2",
    }


def test_without_anything_held_out_training_scenarios_are_measured_and_a_warning_says_so(
    tiny_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        make_trainer(tiny_model_dir, eval_steps=5)
    assert "no scenarios were held out" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        make_trainer(tiny_model_dir, eval_steps=0)
        make_trainer(tiny_model_dir, eval_steps=5, eval_scenarios=HELD_OUT)
    assert caplog.text == ""


def test_held_out_scenarios_that_would_never_be_played_are_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match="eval_steps=0 never plays them"):
        make_trainer(tiny_model_dir, eval_scenarios=HELD_OUT)


async def test_early_stopping_on_an_evaluation_counts_evaluations(tiny_model_dir: Path) -> None:
    trainer = make_trainer(tiny_model_dir, eval_steps=2, eval_scenarios=HELD_OUT)
    callback = EarlyStoppingCallback(patience=2, metric="eval/reward/mean")
    await callback.on_train_start(trainer)

    for metrics in ({"eval/reward/mean": 0.5}, {}, {"eval/reward/mean": 0.4}, {}, {}):
        await callback.on_step_end(trainer, metrics)
    assert trainer.stop_reason is None
    await callback.on_step_end(trainer, {"eval/reward/mean": 0.5})

    assert trainer.stop_reason == "eval/reward/mean has not risen above 0.5 for 2 evaluations"


async def test_early_stopping_on_an_evaluation_that_never_comes_is_refused_at_the_start(
    tiny_model_dir: Path,
) -> None:
    callback = EarlyStoppingCallback(metric="eval/reward/mean")

    with pytest.raises(ConfigurationError, match="eval_steps is 0"):
        await callback.on_train_start(make_trainer(tiny_model_dir))


def test_callbacks_see_the_evaluation_among_the_metrics_of_its_step(tiny_model_dir: Path) -> None:
    class Seen(TrainingCallback):
        names: set[str]

        async def on_step_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
            self.names = set(metrics)

    seen = Seen()
    settings = {"num_episodes": 1, "eval_steps": 1, "eval_scenarios": HELD_OUT, **SMALL}
    train(make_trainer(tiny_model_dir, **settings), [seen])

    assert {"reward/mean", "eval/reward/mean", "seconds/eval"} <= seen.names


def test_between_entries_nothing_is_logged_but_evaluations(tiny_model_dir: Path) -> None:
    entries = {}
    for logging_steps in (1, 2):
        logger = Remembered()
        settings = {"num_episodes": 3, "num_generations": 2, "logging_steps": logging_steps}
        train(make_trainer(tiny_model_dir, logger=logger, **settings))
        entries[logging_steps] = [step for step, _ in logger.steps]

    assert entries == {1: [1, 2, 3], 2: [2, 3]}


def test_a_run_reports_where_its_config_says(tiny_model_dir: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(
        tiny_model_dir,
        num_episodes=2,
        num_generations=2,
        report_to="tensorboard",
        run_name="first",
        logging_dir=str(tmp_path),
    )
    train(trainer)

    events = EventAccumulator(str(tmp_path / "first")).Reload()
    assert [one.step for one in events.Scalars("reward/mean")] == [1, 2]
    assert "policy/loss" in events.Tags()["scalars"]
