"""Train conversational agents by reinforcement learning over whole conversations.

The public surface: what is listed here stays, and is imported when it is first used, so that
`import stateset_agents` loads neither torch nor transformers. What is not listed may change.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stateset_agents import debug

if TYPE_CHECKING:
    from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
    from stateset_agents.core.environment import (
        ConversationEnvironment,
        Environment,
        EnvironmentState,
    )
    from stateset_agents.core.environment_check import check_environment
    from stateset_agents.core.reward import (
        CompositeReward,
        ConcisenessReward,
        CorrectnessReward,
        EngagementReward,
        HelpfulnessReward,
        RewardFunction,
        RewardResult,
        SafetyReward,
        TaskCompletionReward,
        check_reward,
        reward_function,
    )
    from stateset_agents.core.trajectory import (
        ConversationTurn,
        MultiTurnTrajectory,
        TrajectoryGroup,
    )
    from stateset_agents.core.value_function import ValueFunction
    from stateset_agents.exceptions import StateSetError
    from stateset_agents.training.callbacks import (
        CheckpointCallback,
        EarlyStoppingCallback,
        TrainingCallback,
    )
    from stateset_agents.training.config import TrainingConfig
    from stateset_agents.training.multi_turn_trainer import MultiTurnGRPOTrainer
    from stateset_agents.training.train import train

__version__ = "0.1.0"

debug.apply()

_HOMES = {
    "AgentConfig": "core.agent",
    "CheckpointCallback": "training.callbacks",
    "CompositeReward": "core.reward",
    "ConcisenessReward": "core.reward",
    "ConversationEnvironment": "core.environment",
    "ConversationTurn": "core.trajectory",
    "CorrectnessReward": "core.reward",
    "EarlyStoppingCallback": "training.callbacks",
    "EngagementReward": "core.reward",
    "Environment": "core.environment",
    "EnvironmentState": "core.environment",
    "HelpfulnessReward": "core.reward",
    "MultiTurnAgent": "core.agent",
    "MultiTurnGRPOTrainer": "training.multi_turn_trainer",
    "MultiTurnTrajectory": "core.trajectory",
    "RewardFunction": "core.reward",
    "RewardResult": "core.reward",
    "SafetyReward": "core.reward",
    "StateSetError": "exceptions",
    "TaskCompletionReward": "core.reward",
    "TrainingCallback": "training.callbacks",
    "TrainingConfig": "training.config",
    "TrajectoryGroup": "core.trajectory",
    "ValueFunction": "core.value_function",
    "check_environment": "core.environment_check",
    "check_reward": "core.reward",
    "reward_function": "core.reward",
    "train": "training.train",
}

__all__ = [
    "AgentConfig",
    "CheckpointCallback",
    "CompositeReward",
    "ConcisenessReward",
    "ConversationEnvironment",
    "ConversationTurn",
    "CorrectnessReward",
    "EarlyStoppingCallback",
    "EngagementReward",
    "Environment",
    "EnvironmentState",
    "HelpfulnessReward",
    "MultiTurnAgent",
    "MultiTurnGRPOTrainer",
    "MultiTurnTrajectory",
    "RewardFunction",
    "RewardResult",
    "SafetyReward",
    "StateSetError",
    "TaskCompletionReward",
    "TrainingCallback",
    "TrainingConfig",
    "TrajectoryGroup",
    "ValueFunction",
    "check_environment",
    "check_reward",
    "reward_function",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
