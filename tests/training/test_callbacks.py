"""Callbacks: their order, and that their errors end the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

import stateset_agents
from stateset_agents.exceptions import ConfigurationError, TrainingError
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


def test_how_often_and_how_many_cannot_be_less_than_something() -> None:
    with pytest.raises(ConfigurationError, match="keep at least 1"):
        CheckpointCallback("x", keep=0)


async def test_how_often_and_how_many_the_config_says(tiny_model_dir: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model_dir, num_episodes=10, save_steps=2, save_total_limit=2)
    callback = CheckpointCallback(tmp_path)

    for number in range(1, 8):
        trainer.step = number
        await callback.on_step_end(trainer, {})

    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_4", "step_6"]
