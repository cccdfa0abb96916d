"""What commands read beside the configuration: scenarios, pairs, base model, reward model.

Owns where these are looked for when the command line works without the retraining line, which has
its own places (`tasks.paths`): the same ones, so that what the line made is found.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from stateset_agents.cli.console import BASE_MODEL, REWARD_MODEL, notice
from stateset_agents.exceptions import ConfigurationError

if TYPE_CHECKING:
    from stateset_agents.data.config import DataConfig
    from stateset_agents.data.schemas import PreferencePair, Scenario
    from stateset_agents.rewards.config import RewardsConfig, RewardWeights
    from stateset_agents.run_config import RunConfig
    from stateset_agents.tracking.config import BaseModelConfig


def read_scenarios(config: DataConfig) -> list[Scenario]:
    """All scenarios of the section, with their splits.

    Raises:
        DataError: every problem of every source.
    """
    from stateset_agents.data.scenario_set import read_scenario_set
    from stateset_agents.tracking.artifact_store import fetch_data

    with tempfile.TemporaryDirectory(prefix="stateset-data-") as work:
        return read_scenario_set(config, fetch=lambda address: fetch_data(address, Path(work)))


def read_pairs(config: DataConfig) -> list[PreferencePair]:
    """The pairs to learn from.

    Raises:
        DataError: every problem of every source.
    """
    from stateset_agents.data.readers import read_preferences
    from stateset_agents.tracking.artifact_store import fetch_data

    with tempfile.TemporaryDirectory(prefix="stateset-data-") as work:
        return read_preferences(
            config.preferences, fetch=lambda address: fetch_data(address, Path(work))
        )


def fetch_base_model(config: RunConfig) -> Path:
    """The folder of `base_model.source`: itself if it is one, else data/base_model, fetched unless
    it holds that model already.

    Raises:
        ModelSourceError: it cannot be had.
    """
    from stateset_agents.tracking.model_sources import SourceKind, fetch_model, parse_source

    section = config.base_model
    source = parse_source(section.source)
    if source.kind is SourceKind.FOLDER and section.dtype == "auto":
        return Path(source.location).expanduser()
    if not _holds(BASE_MODEL, section):
        notice(f"fetching {source.text} to {BASE_MODEL}")
        fetch_model(source.text, BASE_MODEL, dtype=section.dtype, tracking=config.tracking)
    return BASE_MODEL


def known_base_model(config: RunConfig) -> Path | None:
    """The folder that `fetch_base_model` would give, if it need not fetch; None otherwise."""
    from stateset_agents.tracking.model_sources import SourceKind, parse_source

    source = parse_source(config.base_model.source)
    if source.kind is SourceKind.FOLDER:
        return Path(source.location).expanduser()
    return BASE_MODEL if _holds(BASE_MODEL, config.base_model) else None


def find_reward_model(rewards: RewardsConfig) -> Path | None:
    """The folder of the reward model; None where the rewards need none.

    Raises:
        ConfigurationError: they need one, and there is none.
    """
    if not rewards.weights.learned:
        return None
    if not REWARD_MODEL.is_dir():
        raise ConfigurationError(
            f"rewards.weights.learned is {rewards.weights.learned}, and there is no reward model "
            f"at {REWARD_MODEL}: train one (python -m tasks.train_reward_model), or set "
            "rewards.weights.learned to 0"
        )
    return REWARD_MODEL


def without_models(rewards: RewardsConfig) -> RewardsConfig:
    """The same rewards as far as they need no model, here or behind an endpoint that costs money; a
    notice says what is left out.

    Raises:
        ConfigurationError: nothing is left.
    """
    weights = rewards.weights
    left_out = {part: weight for part, weight in _of_models(weights).items() if weight}
    if not left_out:
        return rewards
    names = " and ".join(f"`{part}`" for part in left_out)
    if not any(weight for part, weight in weights if part not in left_out):
        raise ConfigurationError(
            f"rewards.weights has no part but {names}, which needs a model: give another part a "
            "weight above 0"
        )
    for part, weight in left_out.items():
        notice(f"without its part {part} (weight {weight}), which needs a model")
    without = weights.model_copy(update=dict.fromkeys(left_out, 0.0))
    return rewards.model_copy(update={"weights": without})


def _of_models(weights: RewardWeights) -> dict[str, float]:
    return {"learned": weights.learned, "judge": weights.judge}


def _holds(folder: Path, wanted: BaseModelConfig) -> bool:
    from stateset_agents.tracking.policy_folder import source_of

    if source_of(folder) != wanted.source.strip():
        return False
    if wanted.dtype == "auto":
        return True
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return bool(described.get("dtype", described.get("torch_dtype")) == wanted.dtype)
