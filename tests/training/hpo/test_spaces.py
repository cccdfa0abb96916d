"""Spaces are checked before anything starts, and every parameter in them does something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stateset_agents.core.agent import AgentConfig
from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.hpo import HPOConfig, get_search_space, with_parameters
from stateset_agents.training.hpo.spaces import agent_parameters, check_space_fits, parse_space
from stateset_agents.training.trainer import Trainer
from tests.training.hpo.made import SCENARIOS, make_base
from tests.training.runs import LettersE, make_agent, train

NAMES = ("grpo", "full", "customer_service", "conservative", "aggressive")
AXES = {name: axis for space in NAMES for name, axis in get_search_space(space).items()}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("grp", "search space 'grp' is unknown; choose from grpo, full"),
        ({}, "the search space is empty"),
        (
            {"learning_rat": {"type": "uniform", "low": 0, "high": 1}},
            "learning_rat is no setting of the training or the agent; did you mean learning_rate?",
        ),
        ({"seed": {"type": "int", "low": 0, "high": 9}}, "seed is not searched over: the best of"),
        ({"save_steps": {"type": "int", "low": 1, "high": 9}}, "it changes no result"),
        ({"temperature": {"type": "normal"}}, "found type 'normal'; allowed: uniform, loguniform"),
        ({"temperature": {"type": "uniform", "low": 1}}, "uniform takes low and high"),
        (
            {"temperature": {"type": "uniform", "low": 1.2, "high": 0.5}},
            "low=1.2 is not below high=0.5",
        ),
        (
            {"temperature": {"type": "uniform", "low": 0.5, "high": 0.5}},
            "low=0.5 is not below high=0.5",
        ),
        (
            {"learning_rate": {"type": "loguniform", "low": 0, "high": 1}},
            "low=0 has no logarithm",
        ),
        (
            {"num_generations": {"type": "categorical", "choices": [4]}},
            "leave nothing to choose or repeat one",
        ),
        (
            {"num_generations": {"type": "categorical", "choices": [4, 4, 8]}},
            "leave nothing to choose or repeat one",
        ),
        ({"num_generations": {"type": "int", "low": 1.5, "high": 3}}, "whole ends"),
        (
            {
                "beta": {"type": "uniform", "low": 0, "high": 1},
                "kl_coefficient": {"type": "uniform", "low": 0, "high": 1},
            },
            "beta and kl_coefficient both set kl_coefficient",
        ),
    ],
)
def test_a_space_that_cannot_be_searched_is_one_clear_error(space: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        HPOConfig(search_space=space)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": {"length": "minimize"}}, "length is not measured"),
        ({"objectives": {}}, "aims at nothing"),
        (
            {"objectives": {"reward": "maximize"}, "optimization_direction": "minimize"},
            "leave one of the two out",
        ),
        (
            {"objectives": {"reward": "maximize", "answer_tokens": "minimize"}, "pruning": True},
            "cannot work with several objectives",
        ),
        ({"start_with": [{"learning_rate": 1.0}]}, "start_with[0]: learning_rate=1.0 is not in"),
        ({"start_with": [{"top_p": 1.0}]}, "start_with[0]: top_p is not in the search space"),
    ],
)
def test_a_search_that_contradicts_itself_is_one_clear_error(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        HPOConfig(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_space_fits_the_defaults(name: str) -> None:
    agent = AgentConfig(model_name="any")
    assert check_space_fits(parse_space(name), TrainingConfig(), agent) == []


def test_what_a_trial_would_stumble_over_is_found_before_it() -> None:
    agent, wide = AgentConfig(model_name="any"), TrainingConfig(num_episodes=4)
    four = {"gradient_accumulation_steps": {"type": "categorical", "choices": [1, 8]}}
    with pytest.raises(ConfigurationError, match="gradient_accumulation_steps=8: one optimizer"):
        check_space_fits(parse_space(four), wide, agent)
    rank = {"lora_r": {"type": "int", "low": 2, "high": 8}}
    with pytest.raises(ConfigurationError, match="lora_r has no effect with use_lora=False"):
        check_space_fits(parse_space(rank), wide, agent)
    clip = {"clip_range": {"type": "uniform", "low": 0.1, "high": 0.3}}
    (warning,) = check_space_fits(parse_space(clip), wide, agent)
    assert "num_iterations is 1: the search will find no difference" in warning


def test_a_shipped_space_is_a_copy() -> None:
    get_search_space("grpo").clear()
    assert get_search_space("grpo")


def test_parameters_become_settings_by_their_own_names() -> None:
    base = TrainingConfig(num_episodes=8)
    tuned = with_parameters(base, {"clip_range": 0.15, "beta": 0.02, "temperature": 0.7})
    assert (tuned.clip_range_left, tuned.clip_range_right) == (0.15, 0.15)
    assert (tuned.kl_coefficient, tuned.num_episodes) == (0.02, 8)
    assert base.clip_range_left is None
    assert agent_parameters({"clip_range": 0.15, "temperature": 0.7}) == {"temperature": 0.7}


def test_settings_and_spaces_load_neither_torch_nor_optuna() -> None:
    code = (
        "import sys; from stateset_agents.training.hpo import HPOConfig, get_search_space;"
        "HPOConfig(search_space=get_search_space('full'));"
        "print(sorted({'torch', 'optuna', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# What each axis is set to, where its high end or last choice would make no difference here.
_VALUES = {
    "clip_range_left": 0.05,
    "clip_range_right": 0.05,
    "max_grad_norm": 0.1,
    "num_generations": 2,
    "overlong_buffer": 0.9,
    "warmup_ratio": 0.9,
    "weight_decay": 10.0,
}
# What acts on answers of unequal length only: the tiny model rarely ends one before this.
_LONG = {"loss_aggregation": {"max_new_tokens": 96}, "overlong_buffer": {"max_new_tokens": 96}}


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path) -> Any:
    """What a run with a parameter's value comes to: its weights, summed with signs."""
    known: dict[str, Any] = {}

    def run(**parameters: Any) -> Any:
        key = repr(parameters)
        if key not in known:
            base = make_base(num_iterations=2, num_generations=4, learning_rate=0.03)
            agent = make_agent(tiny_model_dir, **agent_parameters(parameters))
            trainer = Trainer(
                agent,
                ConversationEnvironment(SCENARIOS[:2]),
                LettersE(),
                with_parameters(base.model_copy(update={"num_episodes": 4}), parameters),
            )
            known[key] = {name: value.tolist() for name, value in train(trainer).items()}
        return known[key]

    return run


def test_the_same_parameters_train_the_same_weights(trained: Any) -> None:
    # else the differences below would say nothing: noise, or a weight that is no number
    assert trained(learning_rate=0.03) == trained()


@pytest.mark.parametrize("name", sorted(AXES))
def test_every_parameter_of_every_space_changes_what_is_trained(name: str, trained: Any) -> None:
    value = _VALUES.get(name, parse_space({name: AXES[name]})[name].extremes[-1])
    beside = _LONG.get(name, {})
    assert trained(**{name: value}, **beside) != trained(**beside)
