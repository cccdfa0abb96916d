"""Hyperparameter search: spaces, trials, studies and what comes of them.

Nothing is imported before it is asked for: settings stay free of torch and optuna.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stateset_agents.training.hpo.config import HPOConfig
    from stateset_agents.training.hpo.quick import quick_hpo
    from stateset_agents.training.hpo.spaces import get_search_space, with_parameters
    from stateset_agents.training.hpo.summary import Confirmation, HPOSummary, TrialRecord

_HOMES = {
    "Confirmation": "summary",
    "HPOConfig": "config",
    "HPOSummary": "summary",
    "TrialRecord": "summary",
    "get_search_space": "spaces",
    "quick_hpo": "quick",
    "with_parameters": "spaces",
}

__all__ = [
    "Confirmation",
    "HPOConfig",
    "HPOSummary",
    "TrialRecord",
    "get_search_space",
    "quick_hpo",
    "with_parameters",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
