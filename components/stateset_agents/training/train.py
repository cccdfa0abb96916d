"""Training in one call: the guide's `train`.

Owns how keywords become a configuration and a trainer. It does not know how training goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stateset_agents.core.agent import MultiTurnAgent
from stateset_agents.core.environment import Environment, Scenario
from stateset_agents.core.reward import RewardFunction
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.callbacks import TrainingCallback
from stateset_agents.training.config import TrainingConfig, config_for_profile
from stateset_agents.training.multi_turn_trainer import MultiTurnGRPOTrainer


async def train(
    agent: MultiTurnAgent,
    environment: Environment,
    reward_fn: RewardFunction,
    num_episodes: int | None = None,
    profile: str | None = None,
    *,
    config: TrainingConfig | None = None,
    callbacks: Sequence[TrainingCallback] = (),
    resume_from: Path | str | None = None,
    eval_scenarios: Sequence[Scenario] = (),
    eval_environment: Environment | None = None,
    **settings: Any,
) -> MultiTurnAgent:
    """Train `agent` on conversations in `environment`, and return it.

    Args:
        agent: speaks with the trained weights afterwards.
        environment: who it talks to.
        reward_fn: what a conversation is worth.
        num_episodes: scenarios visited, a group of conversations each. None: the config's.
        profile: `conservative`, `balanced` (None), `aggressive` or `experimental`, see
            `config.config_for_profile`.
        config: all settings; leaves no room for a profile or single ones.
        callbacks: called between steps.
        resume_from: a checkpoint, or a folder of them.
        eval_scenarios: what `eval_steps` plays, in `eval_environment` or in `environment`.
        eval_environment: whose scenarios are played where `eval_scenarios` names none.
        **settings: single settings of `TrainingConfig`, over the profile's.

    Raises:
        ConfigurationError: `config` beside a profile or settings, or settings that cannot work.
        StateSetError: what `Trainer.train` raises.
    """
    trainer = MultiTurnGRPOTrainer(
        agent,
        environment,
        reward_fn,
        _config_of(config, num_episodes, profile, settings),
        eval_scenarios=eval_scenarios,
        eval_environment=eval_environment,
    )
    return await trainer.train(callbacks, resume_from=resume_from)


def _config_of(
    config: TrainingConfig | None,
    num_episodes: int | None,
    profile: str | None,
    settings: dict[str, Any],
) -> TrainingConfig:
    """The settings of a run, as `train` was told them in one way or the other."""
    if config is None:
        if num_episodes is not None:
            settings = {**settings, "num_episodes": num_episodes}
        return config_for_profile(profile or "balanced", **settings)
    if not isinstance(config, TrainingConfig):
        raise ConfigurationError(
            f"config is {config!r:.80}; give a TrainingConfig, such as "
            "TrainingConfig(learning_rate=1e-5)"
        )
    given = {**settings, **({} if profile is None else {"profile": profile})}
    if given:
        raise ConfigurationError(
            f"train() got a config and beside it {', '.join(sorted(given))}: put them into "
            "the config, or leave the config out"
        )
    if num_episodes is None:
        return config
    changed = config.model_copy(update={"num_episodes": num_episodes})
    return type(config)(**changed.model_dump())  # a copy is not checked
