"""A trainer from the sections of `params.yaml`: what the line's step and the command line share.

Owns how `agent`, `rewards` and `train` become one `Trainer`, so that the same sections on the same
data are the same run, whoever starts it. It does not know where data and models lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stateset_agents.core.agent import AgentConfig, GenerationSettings, MultiTurnAgent
from stateset_agents.data.scenario_set import make_environment
from stateset_agents.data.schemas import Message, PreferencePair, Scenario
from stateset_agents.rewards.build import build_reward
from stateset_agents.rewards.config import RewardsConfig
from stateset_agents.tracking.lineage import fingerprint
from stateset_agents.training.checkpoint import digest
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.demonstrations import Demonstration
from stateset_agents.training.preferences import Preference
from stateset_agents.training.trainer import Trainer


def make_trainer(
    *,
    base_model: Path,
    scenarios: Sequence[Scenario],
    agent: GenerationSettings,
    rewards: RewardsConfig,
    train: TrainingConfig,
    reward_model: Path | None = None,
    pairs: Sequence[PreferencePair] = (),
    eval_scenarios: Sequence[Scenario] = (),
) -> Trainer:
    """A trainer that has loaded nothing yet but the reward model.

    Args:
        base_model: a model folder.
        scenarios: those to train on.
        agent: how the policy speaks.
        rewards: what a conversation is rewarded for.
        train: how it is trained.
        reward_model: needed where `rewards.weights.learned` is not 0, and not read otherwise.
        pairs: their preferred answers are what `train.warm_start_steps` imitates, and they are
            what `train.pairs_from: preferences` trains on.
        eval_scenarios: what `train.eval_steps` plays; without it they are not looked at.

    Raises:
        ConfigurationError: settings that contradict each other, or scenarios that cannot be played.
    """
    learned = rewards.weights.learned > 0
    rewarded_by: dict[str, Any] = {"settings": rewards.model_dump()}
    if learned and reward_model is not None:
        rewarded_by["model"] = fingerprint(reward_model)
    return Trainer(
        MultiTurnAgent(AgentConfig(model_name=str(base_model), **agent.model_dump())),
        make_environment(scenarios),
        build_reward(rewards, reward_model if learned else None),
        train,
        fingerprint={"rewards": digest(rewarded_by)},
        demonstrations=demonstrations(pairs) if train.warm_start_steps else (),
        preferences=preferences(pairs) if train.pairs_from == "preferences" else (),
        eval_environment=(
            make_environment(eval_scenarios) if eval_scenarios and train.eval_steps else None
        ),
    )


def demonstrations(pairs: Sequence[PreferencePair]) -> list[Demonstration]:
    """The preferred answers."""
    return [
        Demonstration(
            _messages(pair.prompt),
            pair.chosen[-1].content,
        )
        for pair in pairs
    ]


def preferences(pairs: Sequence[PreferencePair]) -> list[Preference]:
    """The pairs, as training takes them."""
    return [
        Preference(_messages(pair.prompt), _messages(pair.chosen), _messages(pair.rejected))
        for pair in pairs
    ]


def _messages(part: Sequence[Message]) -> tuple[dict[str, str], ...]:
    return tuple({"role": message.role, "content": message.content} for message in part)
