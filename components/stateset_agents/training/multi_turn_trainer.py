"""The guide's trainer of conversations: `MultiTurnGRPOTrainer`."""

from __future__ import annotations

from stateset_agents.training.trainer import Trainer


class MultiTurnGRPOTrainer(Trainer):
    """`trainer.Trainer` under the guide's name; `config.algorithm` chooses the algorithm."""
