"""Small searches on the tiny model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.hpo import HPOSummary, quick_hpo
from tests.training.runs import LettersE, make_agent

SCENARIOS = [
    {"id": f"{intent}-{n}", "intent": intent, "user_responses": [f"Where is my {intent} {n}?"]}
    for intent in ("parcel", "refund", "lamp")
    for n in range(2)
]
RATES = {"learning_rate": {"type": "loguniform", "low": 1e-4, "high": 1e-1}}


def make_base(**settings: Any) -> TrainingConfig:
    defaults: dict[str, Any] = {
        "num_episodes": 2,
        "num_generations": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
        "use_lora": True,
        "bf16": False,
    }
    return TrainingConfig(**{**defaults, **settings})


def search(folder: Path, storage: Path, /, **settings: Any) -> HPOSummary:
    defaults: dict[str, Any] = {
        "agent": make_agent(folder),
        "environment": ConversationEnvironment(SCENARIOS),
        "reward_function": LettersE(),
        "base_config": make_base(),
        "n_trials": 2,
        "search_space": RATES,
        "confirm_top": 0,
        "validation_samples": 1,
        "storage": str(storage / "hpo.journal"),
    }
    if "hpo_config" in settings:
        for name in ("n_trials", "search_space", "confirm_top", "validation_samples", "storage"):
            del defaults[name]
    return asyncio.run(quick_hpo(**{**defaults, **settings}))
