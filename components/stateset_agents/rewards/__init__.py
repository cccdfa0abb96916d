"""Rewards of a domain and rewards that need a model; the shared ones are in `core.reward`.

What is listed here is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stateset_agents.rewards.customer_service import CustomerServiceReward
    from stateset_agents.rewards.environment_reward import EnvironmentReward
    from stateset_agents.rewards.llm_judge import LLMJudgeReward
    from stateset_agents.rewards.multi_objective_reward import MultiObjectiveReward
    from stateset_agents.rewards.sales_assistant import SalesAssistantReward
    from stateset_agents.rewards.similarity import SimilarityAwareReward
    from stateset_agents.rewards.technical_support import TechnicalSupportReward

_HOMES = {
    "CustomerServiceReward": "customer_service",
    "EnvironmentReward": "environment_reward",
    "LLMJudgeReward": "llm_judge",
    "MultiObjectiveReward": "multi_objective_reward",
    "SalesAssistantReward": "sales_assistant",
    "SimilarityAwareReward": "similarity",
    "TechnicalSupportReward": "technical_support",
}

__all__ = [
    "CustomerServiceReward",
    "EnvironmentReward",
    "LLMJudgeReward",
    "MultiObjectiveReward",
    "SalesAssistantReward",
    "SimilarityAwareReward",
    "TechnicalSupportReward",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
