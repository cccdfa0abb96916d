"""The reward of the line, from its settings."""

from __future__ import annotations

from pathlib import Path

from stateset_agents.core.reward import (
    CompositeReward,
    ConcisenessReward,
    CorrectnessReward,
    EngagementReward,
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
from stateset_agents.rewards.similarity import SimilarityAwareReward


def build_reward(config: RewardsConfig, reward_model_folder: Path | None = None) -> CompositeReward:
    """The composite reward: weights as summands, gates as factors, what has 0 left out.

    Parts are named as in the configuration: rubric, helpfulness, conciseness, learned, correctness,
    engagement, judge, safety, repetition, fluency, padding, finished, similarity.

    Args:
        config: weights, gates and their parameters.
        reward_model_folder: what `train_reward_model` saved; needed if `weights.learned` is not 0.

    Raises:
        ConfigurationError: a learned weight without a folder, no weight at all, a band of words
            that does not ascend, a judge's settings that cannot work, or an extra that is missing.
    """
    weights, gates = config.weights, config.gates
    rewards: list[RewardFunction] = [
        TaskCompletionReward(weights.rubric, "rubric", without_rubric=config.without_rubric),
        HelpfulnessReward(
            weights.helpfulness, "helpfulness", addressing=config.helpfulness_addressing
        ),
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
    rewards += [
        CorrectnessReward(weights.correctness, "correctness"),
        EngagementReward(weights.engagement, "engagement"),
    ]
    if weights.judge > 0:
        rewards.append(_judge(config))
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
        SimilarityAwareReward(
            gates.similarity, "similarity", group_tolerance=config.group_tolerance
        ),
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


def _judge(config: RewardsConfig) -> RewardFunction:
    from stateset_agents.rewards.llm_judge import LLMJudgeReward  # the extra `judge`

    settings = config.judge.model_dump(exclude={"model", "base_url", "rubric"})
    if config.judge.rubric:
        settings["rubric"] = config.judge.rubric
    return LLMJudgeReward(
        config.judge.model, config.judge.base_url, config.weights.judge, "judge", **settings
    )
