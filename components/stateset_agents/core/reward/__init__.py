"""Reward functions: the base class, composition, and the rewards that every domain shares.

The front door of this package: how a finished conversation becomes a number. It does not know
rollouts nor training. Rewards of a domain, or that need a model, are in room `rewards`.
"""

from stateset_agents.core.reward.base import (
    RewardFunction,
    RewardResult,
    Scorable,
    problem_of_reward,
    reward_function,
)
from stateset_agents.core.reward.check import RewardFinding, RewardReport, check_reward
from stateset_agents.core.reward.composite import CompositeReward
from stateset_agents.core.reward.conciseness import ConcisenessReward
from stateset_agents.core.reward.correctness import CorrectnessReward
from stateset_agents.core.reward.engagement import EngagementReward
from stateset_agents.core.reward.helpfulness import HelpfulnessReward
from stateset_agents.core.reward.safety import SafetyReward
from stateset_agents.core.reward.task_completion import TaskCompletionReward

__all__ = [
    "CompositeReward",
    "ConcisenessReward",
    "CorrectnessReward",
    "EngagementReward",
    "HelpfulnessReward",
    "RewardFinding",
    "RewardFunction",
    "RewardReport",
    "RewardResult",
    "SafetyReward",
    "Scorable",
    "TaskCompletionReward",
    "check_reward",
    "problem_of_reward",
    "reward_function",
]
