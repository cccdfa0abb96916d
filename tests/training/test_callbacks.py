"""Callbacks: their order, and that their errors end the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import stateset_agents
from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.exceptions import CheckpointError, ConfigurationError, TrainingError
from stateset_agents.inference.loading import load_model
from stateset_agents.training import multi_turn_trainer
from stateset_agents.training.callbacks import (
    CheckpointCallback,
    EarlyStoppingCallback,
    TrainingCallback,
    in_calling_order,
)
from stateset_agents.training.trainer import Trainer
from tests.training.runs import make_trainer, train

SMALL = {"num_episodes": 2, "num_generations": 2}


class Told(TrainingCallback):
    def __init__(self, name: str, calls: list[str]) -> None:
        self._name, self._calls = name, calls

    @property
    def name(self) -> str:
        return self._name

    async def on_train_start(self, trainer: Trainer) -> None:
        self._calls.append(f"{self._name} starts at {trainer.step}")

    async def on_step_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        self._calls.append(f"{self._name} after {trainer.step}")

    async def on_train_end(self, trainer: Trainer) -> None:
        self._calls.append(f"{self._name} ends")


def test_callbacks_are_called_in_the_order_given(tiny_model_dir: Path) -> None:
    calls: list[str] = []
    train(make_trainer(tiny_model_dir, **SMALL), [Told("a", calls), Told("b", calls)])

    assert calls == [
        *("a starts at 0", "b starts at 0"),
        *("a after 1", "b after 1", "a after 2", "b after 2"),
        *("a ends", "b ends"),
    ]


def test_a_checkpoint_is_written_after_the_others_have_counted() -> None:
    saving, stopping = CheckpointCallback("somewhere"), EarlyStoppingCallback()

    assert in_calling_order([saving, stopping]) == [stopping, saving]


def test_two_callbacks_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"same name: \['EarlyStoppingCallback'\]"):
        in_calling_order([EarlyStoppingCallback(), EarlyStoppingCallback(metric="x")])


def test_an_error_in_a_callback_ends_training(tiny_model_dir: Path) -> None:
    class Broken(TrainingCallback):
        async def on_step_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
            raise RuntimeError("broken at step 1")

    with pytest.raises(RuntimeError, match="broken at step 1"):
        train(make_trainer(tiny_model_dir, **SMALL), [Broken()])


def test_early_stopping_on_a_metric_that_is_not_there_says_which_are(tiny_model_dir: Path) -> None:
    with pytest.raises(TrainingError, match=r"watches 'rewards'.*'reward/mean'"):
        train(make_trainer(tiny_model_dir, **SMALL), [EarlyStoppingCallback(metric="rewards")])


def test_callbacks_are_where_a_reader_of_the_guide_looks() -> None:
    for name in ("CheckpointCallback", "EarlyStoppingCallback", "TrainingCallback"):
        assert getattr(stateset_agents, name) is getattr(multi_turn_trainer, name)


def test_a_run_leaves_checkpoints_to_go_on_from_and_a_policy_that_speaks(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_model_dir, use_lora=False, save_total_limit=1, **SMALL)
    trained = train(trainer, [CheckpointCallback(tmp_path)])

    assert sorted(path.name for path in tmp_path.iterdir()) == ["final", "step_2"]
    saved = dict(load_model(tmp_path / "final", dtype="float32").named_parameters())
    for name, value in trained.items():
        assert torch.equal(saved[name], value), name
    with pytest.raises(CheckpointError, match="holds a policy without"):
        train(make_trainer(tiny_model_dir, use_lora=False, **SMALL), (), tmp_path / "final")
    with pytest.raises(CheckpointError, match="training settings differ"):
        train(make_trainer(tiny_model_dir, use_lora=False, seed=5, **SMALL), (), tmp_path)


async def test_a_policy_that_was_left_behind_is_loaded_by_its_folder(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_model_dir, use_lora=False, **SMALL)
    agent = await trainer.train([CheckpointCallback(tmp_path)])
    asked = [{"role": "user", "content": "Where is order 1?"}]
    spoken = agent.config.model_copy(update={"temperature": 0.0})
    agent.config.temperature = 0.0
    before = await agent.generate_response(asked)
    await trainer.close()

    again = MultiTurnAgent(
        AgentConfig(**{**spoken.model_dump(), "model_name": str(tmp_path / "final")})
    )
    await again.initialize()
    assert await again.generate_response(asked) == before
    await again.engine.aclose()


async def test_the_best_policy_is_kept_where_the_metric_was_highest(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_model_dir)
    await trainer.agent.initialize()
    callback = CheckpointCallback(tmp_path, save_steps=0, best_metric="reward/mean", final=False)
    await callback.on_train_start(trainer)

    for number, reward in enumerate([0.25, 0.75, 0.5]):
        trainer.step = number
        await callback.on_step_end(trainer, {"reward/mean": reward})

    assert '"steps": 1' in (tmp_path / "best" / "policy.json").read_text()
    resumed = CheckpointCallback(tmp_path, best_metric="reward/mean")
    resumed.load_state_dict(callback.state_dict())
    assert resumed.best == 0.75


async def test_a_best_metric_that_never_comes_is_refused(tiny_model_dir: Path) -> None:
    trainer = make_trainer(tiny_model_dir)

    with pytest.raises(ConfigurationError, match="eval_steps is 0"):
        await CheckpointCallback("x", best_metric="eval/reward/mean").on_train_start(trainer)
    with pytest.raises(TrainingError, match="watches 'rewards'"):
        await CheckpointCallback("x", best_metric="rewards").on_step_end(trainer, {"a": 1.0})
    with pytest.raises(ConfigurationError, match="keep at least 1"):
        CheckpointCallback("x", keep=0)


async def test_how_often_and_how_many_the_config_says(tiny_model_dir: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model_dir, num_episodes=10, save_steps=2, save_total_limit=2)
    callback = CheckpointCallback(tmp_path)

    for number in range(1, 8):
        trainer.step = number
        await callback.on_step_end(trainer, {})

    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_4", "step_6"]
