"""Settings: the guide's names, all problems at once, no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.scenario_order import scenarios_of_step


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        TrainingConfig(num_generations=1, learning_rate=-1, algorithm="ppo3", learning_rte=1)

    assert len(caught.value.problems) == 4
    for name in ("num_generations", "learning_rate", "algorithm", "learning_rte"):
        assert name in str(caught.value)


def test_settings_that_contradict_each_other_are_reported_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        TrainingConfig(lora_dropout=0.1, num_episodes=2, gradient_accumulation_steps=4)

    assert "lora_dropout=0.1" in str(caught.value)
    assert "num_episodes=2" in str(caught.value)


def test_an_assignment_that_is_refused_changes_nothing() -> None:
    config = TrainingConfig()

    for name, value in (("lora_dropout", 0.5), ("num_generations", 1)):
        with pytest.raises(ConfigurationError, match=name):
            setattr(config, name, value)

    assert config == TrainingConfig()


@pytest.mark.parametrize("name", ["beta", "kl_penalty", "kl_coefficient"])
def test_the_kl_weight_has_three_names(name: str) -> None:
    config = TrainingConfig(**{name: 0.25})

    assert config.beta == config.kl_penalty == config.kl_coefficient == 0.25
    setattr(config, name, 0.5)
    assert config.kl_coefficient == 0.5


def test_one_step_takes_batch_size_times_accumulation_scenarios() -> None:
    config = TrainingConfig(
        num_episodes=10, num_epochs=2, per_device_train_batch_size=3, gradient_accumulation_steps=2
    )

    assert config.groups_per_step == 6
    assert config.total_steps == 3


def test_every_scenario_is_visited_once_before_any_is_visited_again() -> None:
    visited = [item for step in range(6) for item in scenarios_of_step("abcd", step, 2, seed=5)]

    rounds = [visited[start : start + 4] for start in (0, 4, 8)]
    assert [sorted(one) for one in rounds] == [list("abcd")] * 3
    assert len({tuple(one) for one in rounds}) > 1


def test_settings_load_without_torch() -> None:
    code = (
        "import sys, stateset_agents.training.config; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'mlflow')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
