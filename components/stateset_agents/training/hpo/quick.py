"""A search in one call: the guide's `quick_hpo`.

Owns how keywords become a search, and which backend carries it out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.hpo.config import Backend, HPOConfig
from stateset_agents.training.hpo.spaces import with_parameters
from stateset_agents.training.hpo.summary import HPOSummary

if TYPE_CHECKING:
    from stateset_agents.core.agent import MultiTurnAgent
    from stateset_agents.core.environment import Environment
    from stateset_agents.core.reward import RewardFunction
    from stateset_agents.training.demonstrations import Demonstration
    from stateset_agents.training.hpo.search import Search

# What a backend imports, and the extra that has it.
_NEEDS: Mapping[Backend, tuple[tuple[str, str], ...]] = {
    "optuna": (("optuna", "hpo"),),
    "ray_tune": (("optuna", "hpo"), ("ray", "ray")),
    "wandb": (("optuna", "hpo"), ("wandb", "wandb")),
}


async def quick_hpo(
    agent: MultiTurnAgent,
    environment: Environment,
    reward_function: RewardFunction,
    base_config: TrainingConfig | None = None,
    n_trials: int | None = None,
    backend: Backend | None = None,
    *,
    hpo_config: HPOConfig | None = None,
    validation_environment: Environment | None = None,
    demonstrations: Sequence[Demonstration] = (),
    **settings: Any,
) -> HPOSummary:
    """Search for the training parameters whose policy is rewarded best.

    Every trial trains an agent of its own; `agent` stays as it is. Trials are scored on scenarios
    that none is trained on, and the best are trained again with fresh seeds.

    Args:
        agent: whose model, settings and class the trials' agents have.
        environment: who it talks to; a part of its scenarios is kept for scoring.
        reward_function: what a conversation is worth.
        base_config: what is not searched over. None: the defaults.
        n_trials: over `hpo_config`'s. None: its own, 50 by default.
        backend: over `hpo_config`'s. None: its own, `optuna` by default.
        hpo_config: all settings of the search; leaves no room for single ones.
        validation_environment: what trials are scored on, instead of a part of `environment`.
        demonstrations: what `base_config.warm_start_steps` imitates.
        **settings: single settings of `HPOConfig`.

    Raises:
        ConfigurationError: before a trial starts: a space or setting that cannot work, an extra or
            a storage that is not there, a study of the same name that is another search.
        TrainingError: no trial was completed.
        RewardError: the reward function raised.
    """
    search_settings = _settings(hpo_config, settings, n_trials, backend)
    _check_installed(search_settings.backend)
    from stateset_agents.training.hpo.search import make_search
    from stateset_agents.training.hpo.trial import TrialRunner
    from stateset_agents.training.hpo.validation import given_validation, split_off_validation

    samples, seed = search_settings.validation_samples, search_settings.seed
    if validation_environment is None:
        share = search_settings.validation_share
        environment, validation = split_off_validation(environment, share, samples, seed)
    else:
        validation = given_validation(environment, validation_environment, samples)
    runner = TrialRunner(
        agent,
        environment,
        reward_function,
        validation,
        _base(base_config, search_settings),
        demonstrations,
        search_settings.trial_time_limit_seconds,
        seed,
    )
    runner.check()
    return await _carry_out(make_search(search_settings, runner), search_settings.backend)


async def _carry_out(search: Search, backend: Backend) -> HPOSummary:
    from stateset_agents.training.hpo.search import run_search

    if backend == "ray_tune":
        from stateset_agents.training.hpo.ray_backend import run_search_with_ray

        return await run_search_with_ray(search)
    if backend == "wandb":
        from stateset_agents.training.hpo.wandb_backend import WandbRuns

        search = replace(search, observer=WandbRuns(search.study_name))
    return await run_search(search, backend)


def _settings(
    config: HPOConfig | None,
    single: Mapping[str, Any],
    n_trials: int | None,
    backend: Backend | None,
) -> HPOConfig:
    both = {"n_trials": n_trials, "backend": backend}
    given = {name: value for name, value in both.items() if value is not None}
    if config is None:
        return HPOConfig(**single, **given)
    if single:
        raise ConfigurationError(
            f"quick_hpo() got an hpo_config and beside it {', '.join(sorted(single))}: put them "
            "into the config, or leave the config out"
        )
    return HPOConfig(**{**config.model_dump(include=config.model_fields_set), **given})


def _base(config: TrainingConfig | None, settings: HPOConfig) -> TrainingConfig:
    config = config or TrainingConfig()
    if settings.episodes_per_trial is None:
        return config
    return with_parameters(config, {"num_episodes": settings.episodes_per_trial})


def _check_installed(backend: Backend) -> None:
    missing = [
        f"backend {backend!r} needs {module}, which is not installed: pip install "
        f"'stateset-agents[{extra}]'"
        for module, extra in _NEEDS[backend]
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise ConfigurationError(missing)
