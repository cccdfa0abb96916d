"""Conversations that ship with the package: one set of `ConversationEnvironment` keywords a domain.

They are for a first run and for examples; the retraining line reads its own scenarios from files.
Each domain has friendly and angry users, short and long ones, easy requests and such that the
policy in `context` does not allow.
"""

from __future__ import annotations

from typing import Any

from stateset_agents.core.conversation_configs.customer_service import CUSTOMER_SERVICE
from stateset_agents.core.conversation_configs.sales import SALES
from stateset_agents.core.conversation_configs.technical_support import TECHNICAL_SUPPORT

CONVERSATION_CONFIGS: dict[str, dict[str, Any]] = {
    "customer_service": {
        "max_turns": 10,
        "randomize_scenarios": True,
        "scenarios": CUSTOMER_SERVICE,
    },
    "technical_support": {
        "max_turns": 12,
        "randomize_scenarios": True,
        "scenarios": TECHNICAL_SUPPORT,
    },
    "sales": {
        "max_turns": 10,
        "randomize_scenarios": True,
        "scenarios": SALES,
    },
}
