"""The reward of the line, from its settings."""

from __future__ import annotations

from pathlib import Path

from stateset_agents.core.reward import (
    CompositeReward,
    ConcisenessReward,
    HelpfulnessReward,
    RewardFunction,
    SafetyReward,
    TaskCompletionReward,
)
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.rewards.config import RewardsConfig
from stateset_agents.rewards.finished import FinishedReward
from stateset_agents.rewards.fluency import FluencyReward
from stateset_agents.rewards.padding import PaddingReward
from stateset_agents.rewards.repetition import RepetitionReward


def build_reward(config: RewardsConfig, reward_model_folder: Path | None = None) -> CompositeReward:
    """The composite reward: weights as summands, gates as factors, what has 0 left out.

    Parts are named as in the configuration: rubric, helpfulness, conciseness, learned, safety,
    repetition, fluency, padding, finished.

    Args:
        config: weights, gates and their parameters.
        reward_model_folder: what `train_reward_model` saved; needed if `weights.learned` is not 0.

    Raises:
        ConfigurationError: a learned weight without a folder, no weight at all, or a band of words
            that does not ascend.
    """
    weights, gates = config.weights, config.gates
    rewards: list[RewardFunction] = [
        TaskCompletionReward(weights.rubric, "rubric", without_rubric=config.without_rubric),
        HelpfulnessReward(weights.helpfulness, "helpfulness", addressing="lexical"),
        ConcisenessReward(
            weights.conciseness,
            "conciseness",
            min_words=config.min_words,
            max_words=config.max_words,
            hard_max_words=config.hard_max_words,
        ),
    ]
    if weights.learned > 0:
        rewards.append(_learned(config, reward_model_folder))
    factors: list[RewardFunction] = [
        SafetyReward(gates.safety, "safety"),
        RepetitionReward(
            gates.repetition,
            "repetition",
            own_tolerance=config.own_tolerance,
            echo_tolerance=config.echo_tolerance,
            quoted_words=config.quoted_words,
        ),
        FluencyReward(gates.fluency, "fluency"),
        PaddingReward(gates.padding, "padding"),
        FinishedReward(gates.finished, "finished"),
    ]
    return CompositeReward(
        [reward for reward in rewards if reward.weight > 0],
        gates=[gate for gate in factors if gate.weight > 0],
        name="reward",
    )


def _learned(config: RewardsConfig, folder: Path | None) -> RewardFunction:
    if folder is None:
        raise ConfigurationError(
            f"rewards.weights.learned is {config.weights.learned}, but there is no reward model; "
            "train one (python -m tasks.train_reward_model) or set rewards.weights.learned to 0"
        )
    from stateset_agents.rewards.learned import LearnedReward  # imports torch

    return LearnedReward.load(
        folder,
        weight=config.weights.learned,
        name="learned",
        max_batch_tokens=config.learned_batch_tokens,
    )
