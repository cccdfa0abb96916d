"""Settings: the guide's names, all problems at once, no torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.algorithms import ALGORITHMS
from stateset_agents.training.config import (
    TrainingConfig,
    config_for_profile,
    get_config_for_task,
)
from stateset_agents.training.scenario_order import scenarios_of_step


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        TrainingConfig(num_generations=0, learning_rate=-1, algorithm="ppo3", learning_rte=1)

    assert len(caught.value.problems) == 4
    for name in ("num_generations", "learning_rate", "algorithm", "learning_rte"):
        assert name in str(caught.value)


def test_settings_that_contradict_each_other_are_reported_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        TrainingConfig(lora_dropout=0.1, num_episodes=2, gradient_accumulation_steps=4)

    assert "lora_dropout=0.1" in str(caught.value)
    assert "num_episodes=2" in str(caught.value)


def test_every_setting_that_an_algorithm_cannot_work_with_is_reported_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        TrainingConfig(
            algorithm="gspo",
            credit="turn",
            num_generations=1,
            sapo_temperature_negative=2.0,
            resampling_rounds=2,
            kl_bias_correction=True,
            importance_sampling="mask",
            importance_sampling_cap=None,
            off_policy_steps=1,
            lora_dropout=0.1,
        )

    for part in (
        'credit="turn" cannot work with algorithm="gspo"',
        "sapo_temperature_negative=2.0 has no effect",
        'num_generations=1 leaves advantage_baseline="group"',
        "resampling_rounds=2 cannot work with num_generations=1",
        "kl_bias_correction=True has no effect with kl_coefficient=0",
        'importance_sampling="mask" has no band',
        "off_policy_steps=1 needs importance sampling",
        "lora_dropout=0.1 has no effect",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"algorithm": "sapo", "clip_range_left": 0.1}, "clip_range_left=0.1 has no effect"),
        ({"algorithm": "cispo", "ratio_cap": 4.0}, "takes clip_range_left, clip_range_right"),
        ({"importance_sampling_floor": 0.5}, "importance_sampling_floor=0.5 has no effect"),
        (
            {"importance_sampling": "mask", "importance_sampling_floor": 3.0},
            "is not below importance_sampling_cap=2.0",
        ),
        (
            {
                "algorithm": "reinforce++",
                "num_generations": 1,
                "gradient_accumulation_steps": 1,
            },
            "one conversation per step",
        ),
    ],
)
def test_a_setting_without_effect_is_an_error_that_says_so(
    settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        TrainingConfig(**settings)


def test_groups_of_one_are_for_algorithms_that_compare_across_groups() -> None:
    for settings in ({"algorithm": "reinforce++"}, {"advantage_baseline": "none"}):
        assert TrainingConfig(num_generations=1, **settings).num_generations == 1


def test_turns_can_be_credited_by_every_algorithm_but_the_one_with_a_single_ratio() -> None:
    for algorithm in ALGORITHMS:
        if ALGORITHMS[algorithm].can_credit_turns:
            config = TrainingConfig(algorithm=algorithm, credit="turn", bf16=False)
            assert config.credit == "turn"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_profiles_clips_are_for_token_ratios_and_other_losses_keep_their_own(
    algorithm: Any,
) -> None:
    profile = config_for_profile("conservative", algorithm=algorithm, bf16=False)
    domain = get_config_for_task("sales", algorithm=algorithm, bf16=False)

    clips = (profile.clip_range_right, domain.clip_range_right)
    assert clips == ((0.1, 0.4) if ALGORITHMS[algorithm].loss == "token_ratio" else (None, None))
    # the caller's own always hold
    if "clip_right" in ALGORITHMS[algorithm].bounds:
        own = config_for_profile("conservative", algorithm=algorithm, clip_range_right=0.3)
        assert own.clip_range_right == 0.3


@pytest.mark.parametrize("profile", ["conservative", "balanced", "aggressive", "experimental"])
def test_every_algorithm_works_with_every_profile(profile: str) -> None:
    for algorithm in ALGORITHMS:
        config = config_for_profile(profile, algorithm=algorithm, bf16=False)
        assert config.algorithm == algorithm


def test_a_seed_beyond_what_generators_take_is_refused_with_the_range() -> None:
    with pytest.raises(ConfigurationError, match="less than 9223372036854775808"):
        TrainingConfig(seed=10**26)


def test_an_assignment_that_is_refused_changes_nothing() -> None:
    config = TrainingConfig()

    for name, value in (("lora_dropout", 0.5), ("num_generations", 1)):
        with pytest.raises(ConfigurationError, match=name):
            setattr(config, name, value)

    assert config == TrainingConfig()


@pytest.mark.parametrize("name", ["beta", "kl_penalty", "kl_coefficient"])
def test_a_callers_setting_wins_over_a_tables_under_any_of_its_names(name: str) -> None:
    assert get_config_for_task("customer_service", **{name: 0.5}).kl_coefficient == 0.5
    assert config_for_profile("conservative", **{name: 0.0}).kl_coefficient == 0.0


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
