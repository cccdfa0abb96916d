"""What the guide promises, written down by hand from its text: every import, keyword, default,
attribute, choice, command and flag. A name that goes from the code, or a default that changes, is a
failure here even where no page uses it any more.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
from typing import Any

import pytest
from pydantic import BaseModel

from stateset_agents import cli
from stateset_agents.settings import allowed_keys
from tests.guide.pages import ROOT

# Modules of the guide that are not there yet: what needs one is expected to fail, and to be taken
# from here when it no longer does.
MISSING = {
    name: f"stateset_agents.training.{name} is not there yet"
    for name in ("distributed", "trl_grpo_wrapper")
    if importlib.util.find_spec(f"stateset_agents.training.{name}") is None
}

IMPORTS = {
    "stateset_agents": (
        "MultiTurnAgent ConversationEnvironment HelpfulnessReward SafetyReward train"
    ),
    "stateset_agents.core.agent": "AgentConfig MultiTurnAgent",
    "stateset_agents.core.environment": (
        "ConversationEnvironment CONVERSATION_CONFIGS Environment EnvironmentState"
    ),
    "stateset_agents.core.memory": "ConversationMemory",
    "stateset_agents.core.reward": (
        "CompositeReward HelpfulnessReward SafetyReward CorrectnessReward ConcisenessReward "
        "EngagementReward TaskCompletionReward reward_function RewardFunction RewardResult"
    ),
    "stateset_agents.core.trajectory": "ConversationTurn MultiTurnTrajectory",
    "stateset_agents.core.value_function": "ValueFunction",
    "stateset_agents.rewards": (
        "CustomerServiceReward TechnicalSupportReward SalesAssistantReward SimilarityAwareReward"
    ),
    "stateset_agents.rewards.multi_objective_reward": "MultiObjectiveReward",
    "stateset_agents.training.callbacks": "EarlyStoppingCallback CheckpointCallback",
    "stateset_agents.training.config": "TrainingConfig get_config_for_task",
    "stateset_agents.training.distributed": "DistributedTrainer",
    "stateset_agents.training.gspo_trainer": "GSPOConfig train_with_gspo",
    "stateset_agents.training.hpo": "quick_hpo get_search_space HPOConfig",
    "stateset_agents.training.multi_turn_trainer": "MultiTurnGRPOTrainer",
    "stateset_agents.training.neural_reward_trainer": "NeuralRewardTrainer",
    "stateset_agents.training.trl_grpo_wrapper": "TRLGRPOTrainerWrapper",
}
NAMES = [(module, name) for module, names in IMPORTS.items() for name in names.split()]

# What is called -> the keywords that the guide gives it.
KEYWORDS = {
    "core.agent.AgentConfig": (
        "model_name system_prompt max_new_tokens temperature top_p top_k torch_dtype "
        "attn_implementation device_map enable_reasoning use_stub_model stub_responses "
        "enable_context_compression compression_ratio compression_strategy"
    ),
    "core.agent.MultiTurnAgent": "config memory",
    "core.environment.ConversationEnvironment": "scenarios max_turns randomize_scenarios",
    "core.environment.Environment.reset": "scenario",
    "core.environment.Environment.step": "state action",
    "core.environment.EnvironmentState": "conversation_history metadata",
    "core.memory.ConversationMemory": "max_turns summarization_threshold",
    "core.reward.CompositeReward": "rewards weight",
    "core.reward.ConcisenessReward": "weight",
    "core.reward.CorrectnessReward": "weight",
    "core.reward.EngagementReward": "weight",
    "core.reward.HelpfulnessReward": "weight",
    "core.reward.RewardFunction": "weight",
    "core.reward.RewardFunction.compute_reward": "turns context",
    "core.reward.RewardResult": "score breakdown metadata",
    "core.reward.SafetyReward": "weight",
    "core.reward.TaskCompletionReward": "weight",
    "core.reward.reward_function": "weight",
    "core.trajectory.ConversationTurn": "role content reward metadata",
    "core.trajectory.MultiTurnTrajectory": (
        "trajectory_id turns episode_reward trajectory_group_id"
    ),
    "core.value_function.ValueFunction": "hidden_size gamma gae_lambda",
    "rewards.CustomerServiceReward": "weight",
    "rewards.SalesAssistantReward": "weight",
    "rewards.SimilarityAwareReward": "weight",
    "rewards.TechnicalSupportReward": "weight",
    "rewards.multi_objective_reward.MultiObjectiveReward": "objectives aggregation normalize",
    "training.callbacks.CheckpointCallback": "save_dir",
    "training.callbacks.EarlyStoppingCallback": "patience",
    "training.config.TrainingConfig": (
        "num_episodes num_epochs learning_rate adam_beta1 adam_beta2 max_grad_norm warmup_ratio "
        "per_device_train_batch_size gradient_accumulation_steps num_generations "
        "max_prompt_length max_completion_length bf16 fp16 eval_steps save_steps logging_steps "
        "report_to wandb_project use_lora lora_r lora_alpha lora_dropout lora_target_modules "
        "kl_penalty"
    ),
    "training.config.get_config_for_task": "task model_name",
    "training.distributed.DistributedTrainer": (
        "agent environment reward_fn config num_gpus strategy"
    ),
    "training.gspo_trainer.GSPOConfig": (
        "num_generations beta clip_range_left clip_range_right num_outer_iterations "
        "learning_rate per_device_train_batch_size gradient_accumulation_steps use_lora lora_r "
        "lora_alpha"
    ),
    "training.gspo_trainer.train_with_gspo": "config agent environment reward_model",
    "training.hpo.HPOConfig": "search_space n_trials optimization_direction pruning",
    "training.hpo.get_search_space": "name",
    "training.hpo.quick_hpo": "agent environment reward_function base_config n_trials backend",
    "training.multi_turn_trainer.MultiTurnGRPOTrainer": (
        "agent environment reward_function config value_function"
    ),
    "training.multi_turn_trainer.MultiTurnGRPOTrainer.train": "callbacks",
    "training.neural_reward_trainer.NeuralRewardTrainer": "model_name preference_data",
    "training.train.train": "agent environment reward_fn num_episodes profile",
    "training.trl_grpo_wrapper.TRLGRPOTrainerWrapper": "agent environment reward_fn config",
}
ALL_KEYWORDS = [(callee, word) for callee, words in KEYWORDS.items() for word in words.split()]

# Defaults that the guide states or shows as such.
DEFAULTS: list[tuple[str, str, Any]] = [
    ("core.agent.AgentConfig", "max_new_tokens", 512),
    ("core.agent.AgentConfig", "temperature", 0.8),
    ("core.agent.AgentConfig", "device_map", "auto"),
    ("core.agent.AgentConfig", "enable_reasoning", False),
    ("core.agent.AgentConfig", "enable_context_compression", False),
    ("core.agent.AgentConfig", "compression_ratio", 0.5),
    ("core.agent.AgentConfig", "compression_strategy", "summary"),
    ("core.agent.AgentConfig", "use_stub_model", False),
    ("core.environment.ConversationEnvironment", "max_turns", 10),
    ("core.memory.ConversationMemory", "max_turns", 100),
    ("core.memory.ConversationMemory", "summarization_threshold", 50),
    ("core.value_function.ValueFunction", "gamma", 0.99),
    ("core.value_function.ValueFunction", "gae_lambda", 0.95),
    ("training.callbacks.EarlyStoppingCallback", "patience", 10),
    ("training.config.TrainingConfig", "algorithm", "grpo"),
    ("training.config.TrainingConfig", "num_episodes", 1000),
    ("training.config.TrainingConfig", "num_epochs", 1),
    ("training.config.TrainingConfig", "learning_rate", 5e-6),
    ("training.config.TrainingConfig", "adam_beta1", 0.9),
    ("training.config.TrainingConfig", "adam_beta2", 0.99),
    ("training.config.TrainingConfig", "max_grad_norm", 1.0),
    ("training.config.TrainingConfig", "warmup_ratio", 0.1),
    ("training.config.TrainingConfig", "per_device_train_batch_size", 1),
    ("training.config.TrainingConfig", "gradient_accumulation_steps", 4),
    ("training.config.TrainingConfig", "num_generations", 16),
    ("training.config.TrainingConfig", "max_prompt_length", 512),
    ("training.config.TrainingConfig", "max_completion_length", 512),
    ("training.config.TrainingConfig", "bf16", True),
    ("training.config.TrainingConfig", "fp16", False),
    ("training.config.TrainingConfig", "save_steps", 100),
    ("training.config.TrainingConfig", "logging_steps", 10),
    ("training.config.TrainingConfig", "use_lora", False),
    ("training.config.TrainingConfig", "lora_r", 16),
    ("training.config.TrainingConfig", "lora_alpha", 32),
    ("training.distributed.DistributedTrainer", "strategy", "ddp"),
    ("training.gspo_trainer.GSPOConfig", "num_generations", 4),
    ("training.gspo_trainer.GSPOConfig", "num_outer_iterations", 100),
    ("training.gspo_trainer.GSPOConfig", "learning_rate", 5e-6),
    ("training.hpo.HPOConfig", "n_trials", 50),
    ("training.hpo.HPOConfig", "optimization_direction", "maximize"),
]

# Settings that the guide changes after a config was made.
ASSIGNED: list[tuple[str, str, Any]] = [
    ("core.agent.AgentConfig", "attn_implementation", "flash_attention_2"),
    ("training.config.TrainingConfig", "per_device_train_batch_size", 4),
    ("training.config.TrainingConfig", "gradient_accumulation_steps", 8),
    ("training.config.TrainingConfig", "use_lora", True),
    ("training.config.TrainingConfig", "max_completion_length", 256),
    ("training.config.TrainingConfig", "bf16", True),
    ("training.config.TrainingConfig", "learning_rate", 1e-6),
    ("training.config.TrainingConfig", "num_generations", 4),
    ("training.config.TrainingConfig", "kl_penalty", 0.1),
]

# One setting, and each value that the guide says it may have.
CHOICES: list[tuple[str, str, Any]] = [
    *[
        ("core.agent.AgentConfig", "torch_dtype", name)
        for name in ("bfloat16", "float16", "float32")
    ],
    ("core.agent.AgentConfig", "attn_implementation", "flash_attention_2"),
    *[
        ("core.agent.AgentConfig", "compression_strategy", name)
        for name in ("summary", "truncate", "sliding_window")
    ],
    ("training.config.TrainingConfig", "report_to", "wandb"),
    *[("training.config.TrainingConfig", "algorithm", name) for name in ("grpo", "gspo", "ppo")],
    *[("training.config.TrainingConfig", "algorithm", name) for name in ("a2c", "trpo")],
    ("training.hpo.HPOConfig", "backend", "optuna"),
    ("training.hpo.HPOConfig", "backend", "ray_tune"),
    ("training.hpo.HPOConfig", "backend", "wandb"),
    *[
        ("training.hpo.HPOConfig", "search_space", name)
        for name in ("grpo", "full", "customer_service", "conservative", "aggressive")
    ],
]

ATTRIBUTES = [
    ("training.hpo.summary.HPOSummary", "best_params"),
    ("training.hpo.summary.HPOSummary", "best_reward"),
    ("core.agent.MultiTurnAgent", "initialize"),
    ("core.agent.MultiTurnAgent", "generate_response"),
    ("training.distributed.DistributedTrainer", "train"),
    ("training.neural_reward_trainer.NeuralRewardTrainer", "train"),
    ("training.trl_grpo_wrapper.TRLGRPOTrainerWrapper", "train"),
]

FLAGS = {
    "doctor": "",
    "init": "--path",
    "train": "--config --save --stub --resume",
    "evaluate": "--checkpoint --message --input",
    "serve": "--checkpoint --port --api-key",
}
ALL_FLAGS = [(command, flag) for command, flags in FLAGS.items() for flag in flags.split()]

FILES = [
    "docs/RL_FRAMEWORK_GUIDE.md",
    "docs/FRAMEWORK_OVERVIEW.md",
    "docs/GSPO_GUIDE.md",
    "docs/TRL_GRPO_TRAINING_GUIDE.md",
    "docs/HPO_GUIDE.md",
    "docs/PERFORMANCE_TUNING_GUIDE.md",
    "docs/MEMORY_REQUIREMENTS_GUIDE.md",
    "examples/customer_service_bot.py",
    "examples/technical_support_agent.py",
    "examples/sales_assistant.py",
    "examples/custom_domain_agent.py",
]


def entries(table: list[Any]) -> list[Any]:
    """The table as parameters; those of a module that is missing must fail, and say why."""
    return [
        pytest.param(
            *row,
            marks=[
                pytest.mark.xfail(strict=True, reason=reason)
                for name, reason in MISSING.items()
                if f"training.{name}" in row[0]
            ],
        )
        for row in table
    ]


def _missing_page(path: str) -> list[Any]:
    if "TRL" in path and "trl_grpo_wrapper" in MISSING:
        return [pytest.mark.xfail(strict=True, reason=MISSING["trl_grpo_wrapper"])]
    return []


def found(path: str) -> Any:
    """`core.agent.AgentConfig`, or a method of it, in the package."""
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = ".".join(["stateset_agents", *parts[:cut]])
        try:
            target = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            continue
        for name in parts[cut:]:
            target = getattr(target, name)
        return target
    raise AssertionError(f"there is no module for {path}")


def keywords_of(callee: Any) -> set[str]:
    if isinstance(callee, type) and issubclass(callee, BaseModel):
        return set(allowed_keys(callee))
    parameters = inspect.signature(callee).parameters.values()
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {one.name for one in parameters if one.kind in by_keyword}


def default_of(callee: Any, keyword: str) -> Any:
    if isinstance(callee, type) and issubclass(callee, BaseModel):
        return callee.model_fields[keyword].get_default(call_default_factory=True)
    if dataclasses.is_dataclass(callee):
        return next(one.default for one in dataclasses.fields(callee) if one.name == keyword)
    return inspect.signature(callee).parameters[keyword].default


def made(path: str, **settings: Any) -> Any:
    required: dict[str, Any] = {"model_name": "gpt2"} if path.endswith("AgentConfig") else {}
    if settings.get("algorithm") == "trpo":  # its line search needs float32
        required["bf16"] = False
    return found(path)(**required, **settings)


@pytest.mark.parametrize(("module", "name"), entries(NAMES))
def test_every_import_of_the_guide_works(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("callee", "keyword"), entries(ALL_KEYWORDS))
def test_every_keyword_of_the_guide_is_one(callee: str, keyword: str) -> None:
    assert keyword in keywords_of(found(callee))


@pytest.mark.parametrize(("callee", "keyword", "value"), entries(DEFAULTS))
def test_every_default_of_the_guide_holds(callee: str, keyword: str, value: Any) -> None:
    assert default_of(found(callee), keyword) == value


@pytest.mark.parametrize(("callee", "keyword", "value"), entries(CHOICES))
def test_every_choice_of_the_guide_is_taken(callee: str, keyword: str, value: Any) -> None:
    assert getattr(made(callee, **{keyword: value}), keyword) == value


@pytest.mark.parametrize(("callee", "attribute", "value"), entries(ASSIGNED))
def test_every_setting_that_the_guide_changes_later_can_be(
    callee: str, attribute: str, value: Any
) -> None:
    config = made(callee)
    setattr(config, attribute, value)
    assert getattr(config, attribute) == value


@pytest.mark.parametrize(("owner", "attribute"), entries(ATTRIBUTES))
def test_every_attribute_of_the_guide_is_there(owner: str, attribute: str) -> None:
    target = found(owner)
    assert hasattr(target, attribute) or attribute in getattr(target, "__annotations__", {})


@pytest.mark.parametrize(("command", "flag"), entries(ALL_FLAGS))
def test_every_flag_of_the_guide_is_in_its_commands_help(
    command: str, flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    try:
        code = cli.main([command, "--help"])
    except SystemExit as ended:
        code = ended.code
    assert code in (0, None)
    assert flag in capsys.readouterr().out


@pytest.mark.parametrize("profile", ["conservative", "balanced", "aggressive", "experimental"])
def test_every_profile_of_the_guide_is_one(profile: str) -> None:
    found("training.config.config_for_profile")(profile)


@pytest.mark.parametrize("domain", ["customer_service", "technical_support", "sales"])
def test_every_domain_of_the_guide_has_settings_and_conversations(domain: str) -> None:
    found("training.config.get_config_for_task")(domain, model_name="gpt2")
    configs = found("core.environment.CONVERSATION_CONFIGS")
    found("core.environment.ConversationEnvironment")(**configs[domain])


@pytest.mark.parametrize("aggregation", ["weighted_sum", "min", "product"])
def test_every_aggregation_of_the_guide_is_one(aggregation: str) -> None:
    part = {"name": "safety", "reward": found("core.reward.SafetyReward")(), "weight": 1.0}
    found("rewards.multi_objective_reward.MultiObjectiveReward")(
        objectives=[part], aggregation=aggregation, normalize=True
    )


@pytest.mark.parametrize("path", [pytest.param(one, marks=_missing_page(one)) for one in FILES])
def test_every_file_that_the_guide_points_to_is_there(path: str) -> None:
    assert (ROOT / path).is_file()


def test_no_entry_is_written_twice() -> None:
    for table in (NAMES, ALL_KEYWORDS, DEFAULTS, ASSIGNED, CHOICES, ATTRIBUTES, ALL_FLAGS):
        assert len(table) == len({repr(row) for row in table})
