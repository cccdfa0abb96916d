"""Training in one call, profiles, domains, GSPO's own names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import stateset_agents
from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.callbacks import CheckpointCallback, TrainingCallback
from stateset_agents.training.config import (
    PROFILES,
    TrainingConfig,
    config_for_profile,
    get_config_for_task,
)
from stateset_agents.training.gspo_trainer import GSPOConfig, train_with_gspo
from stateset_agents.training.model_size import estimated_parameters
from stateset_agents.training.objective import objective_of
from tests.training.runs import SCENARIOS, LettersE, make_agent

SMALL = {"gradient_accumulation_steps": 1, "num_generations": 2, "bf16": False}


class Steps(TrainingCallback):
    def __init__(self) -> None:
        self.configs: list[TrainingConfig] = []

    async def on_step_end(self, trainer, metrics) -> None:  # type: ignore[no-untyped-def]
        self.configs.append(trainer.config)


def environment() -> ConversationEnvironment:
    return ConversationEnvironment(SCENARIOS, max_turns=4)


async def test_train_changes_the_weights_of_the_agent_that_is_passed_in(
    tiny_model_dir: Path,
) -> None:
    agent, steps = make_agent(tiny_model_dir), Steps()
    await agent.initialize()
    before = {name: value.clone() for name, value in agent.engine._parameters.items()}  # type: ignore[attr-defined]

    trained = await stateset_agents.train(
        agent=agent,
        environment=environment(),
        reward_fn=LettersE(),
        num_episodes=3,
        profile="aggressive",
        callbacks=[steps],
        learning_rate=1e-2,
        **SMALL,
    )

    assert trained is agent
    after = agent.engine._parameters  # type: ignore[attr-defined]
    assert any(not value.equal(after[name]) for name, value in before.items())
    assert len(steps.configs) == 3
    assert steps.configs[0].clip_range_right == 0.4  # of the profile
    assert steps.configs[0].learning_rate == 1e-2  # the caller's wins


async def test_train_goes_on_from_a_checkpoint(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = {"num_episodes": 3, "save_steps": 1, **SMALL}
    first, second = Steps(), Steps()
    await stateset_agents.train(
        make_agent(tiny_model_dir),
        environment(),
        LettersE(),
        callbacks=[CheckpointCallback(tmp_path), first],
        **settings,
    )

    await stateset_agents.train(
        make_agent(tiny_model_dir),
        environment(),
        LettersE(),
        callbacks=[second],
        resume_from=tmp_path / "step_2",
        **settings,
    )

    assert (len(first.configs), len(second.configs)) == (3, 1)


async def test_a_config_leaves_no_room_for_a_profile_or_single_settings(
    tiny_model_dir: Path,
) -> None:
    with pytest.raises(ConfigurationError, match="beside it learning_rate, profile"):
        await stateset_agents.train(
            make_agent(tiny_model_dir),
            environment(),
            LettersE(),
            profile="balanced",
            config=TrainingConfig(),
            learning_rate=1e-3,
        )


def test_conservative_clips_tighter_and_steps_smaller_than_balanced_and_aggressive_than_both() -> (
    None
):
    conservative, balanced, aggressive = (
        config_for_profile(name) for name in ("conservative", "balanced", "aggressive")
    )
    rates = [config.learning_rate for config in (conservative, balanced, aggressive)]
    clips = [objective_of(config).loss.keywords for config in (conservative, balanced, aggressive)]  # type: ignore[attr-defined]

    assert rates == sorted(set(rates))
    assert [clip["clip_right"] for clip in clips] == [0.1, 0.28, 0.4]
    assert clips[0]["clip_left"] < clips[1]["clip_left"]
    assert balanced == TrainingConfig()


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_can_work(profile: str) -> None:
    config_for_profile(profile)


def test_an_unknown_profile_and_an_unknown_task_are_named_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"'bold'.*conservative, balanced"):
        config_for_profile("bold")
    with pytest.raises(ConfigurationError, match=r"'banking'.*customer_service"):
        get_config_for_task("banking")


@pytest.mark.parametrize("task", ["customer_service", "technical_support", "sales"])
def test_a_large_model_gets_an_adapter_and_a_small_one_full_weights(task: str) -> None:
    small, large = (get_config_for_task(task, model_name=name) for name in ("gpt2", "llama-7b"))

    assert not small.use_lora
    assert large.use_lora
    assert large.learning_rate == 20 * small.learning_rate


def test_each_domain_has_settings_of_its_own() -> None:
    domains = [
        get_config_for_task(task).model_dump()
        for task in ("customer_service", "technical_support", "sales")
    ]
    assert domains[0] != domains[1] != domains[2] != domains[0]
    assert get_config_for_task("sales", num_generations=4).num_generations == 4


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("llama-7b", 7e9), ("Qwen2.5-0.5B-Instruct", 0.5e9), ("SmolLM2-135M", 135e6), ("gpt2", None)],
)
def test_a_name_tells_the_size(name: str, parameters: float | None) -> None:
    assert estimated_parameters(name) == parameters


def test_a_folder_s_config_tells_the_size_better_than_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "model-7b"
    folder.mkdir()
    # SmolLM2-135M: 134,515,008 parameters, of which its norms are not counted
    shape = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(shape))

    assert estimated_parameters(str(folder)) == 134_515_008 - 61 * 576


async def test_gspo_trains_the_agent_that_is_passed_in_over_whole_conversations(
    tiny_model_dir: Path,
) -> None:
    agent, steps = make_agent(tiny_model_dir), Steps()
    config = GSPOConfig(
        beta=0.0,
        num_outer_iterations=2,
        gradient_accumulation_steps=1,
        use_lora=True,
        lora_r=4,
        lora_alpha=8,
        learning_rate=1e-2,
        bf16=False,
    )

    trained = await train_with_gspo(
        config=config,
        agent=agent,
        environment=environment(),
        reward_model=LettersE(),
        callbacks=[steps],
    )

    assert trained is agent
    assert len(steps.configs) == 2
    assert steps.configs[0].algorithm == "gspo"


def test_a_gspo_config_has_the_guide_s_defaults_and_one_way_to_say_how_long() -> None:
    config = GSPOConfig()
    assert (config.num_generations, config.total_steps, config.beta) == (4, 100, 0.0)
    clips = objective_of(config).loss.keywords  # type: ignore[attr-defined]
    assert (clips["clip_left"], clips["clip_right"]) == (3e-4, 4e-4)
    with pytest.raises(ConfigurationError, match="num_outer_iterations"):
        GSPOConfig(num_episodes=10)
