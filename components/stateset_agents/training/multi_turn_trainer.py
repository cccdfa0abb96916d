"""The guide's trainer of conversations, `MultiTurnGRPOTrainer`, and the callbacks it takes."""

from __future__ import annotations

from stateset_agents.training.callbacks import (
    CheckpointCallback,
    EarlyStoppingCallback,
    TrainingCallback,
)
from stateset_agents.training.trainer import Trainer

__all__ = [
    "CheckpointCallback",
    "EarlyStoppingCallback",
    "MultiTurnGRPOTrainer",
    "TrainingCallback",
]


class MultiTurnGRPOTrainer(Trainer):
    """`trainer.Trainer` under the guide's name; `config.algorithm` chooses the algorithm."""
