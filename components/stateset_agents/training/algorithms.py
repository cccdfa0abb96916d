"""The table of algorithms: an algorithm is a row of vetted defaults and a loss function.

Owns what distinguishes one algorithm from another. The rollout and the trainer do not know which
one runs; a new one is a function in `losses.py`, a row here and its name in `config.Algorithm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from stateset_agents.training.config import KLEstimator, LossAggregation, TrainingConfig
from stateset_agents.training.losses import TokenLosses, grpo_loss, gspo_loss


class LossFunction(Protocol):
    """A per-token policy loss; `losses.py` has them, every tensor is `(B, T)`."""

    def __call__(
        self,
        policy_logprobs: torch.Tensor,
        old_logprobs: torch.Tensor,
        advantages: torch.Tensor,
        loss_mask: torch.Tensor,
        *,
        clip_left: float,
        clip_right: float,
    ) -> TokenLosses:
        """See `losses.grpo_loss`."""
        ...


@dataclass(frozen=True, slots=True)
class AlgorithmRow:
    """One algorithm: its loss and the defaults of its paper."""

    loss: LossFunction
    clip_left: float
    clip_right: float
    loss_aggregation: LossAggregation
    needs_value_head: bool = False


ALGORITHMS: dict[str, AlgorithmRow] = {
    # clips of DAPO (arXiv:2503.14476): the wider upper one keeps exploration alive
    "grpo": AlgorithmRow(grpo_loss, 0.2, 0.28, "sequence_mean"),
    # clips of GSPO's section 5.1 (arXiv:2507.18071)
    "gspo": AlgorithmRow(gspo_loss, 3e-4, 4e-4, "sequence_mean"),
}


@dataclass(frozen=True, slots=True)
class Objective:
    """What one step minimises: the table's row with the run's own settings filled in."""

    loss: LossFunction
    clip_left: float
    clip_right: float
    loss_aggregation: LossAggregation
    kl_coefficient: float
    kl_estimator: KLEstimator
    importance_sampling_cap: float | None


def objective_of(config: TrainingConfig) -> Objective:
    """The objective of a run: what the config leaves None is the algorithm's default."""
    row = ALGORITHMS[config.algorithm]
    left, right = config.clip_range_left, config.clip_range_right
    return Objective(
        loss=row.loss,
        clip_left=row.clip_left if left is None else left,
        clip_right=row.clip_right if right is None else right,
        loss_aggregation=config.loss_aggregation or row.loss_aggregation,
        kl_coefficient=config.kl_coefficient,
        kl_estimator=config.kl_estimator,
        importance_sampling_cap=config.importance_sampling_cap,
    )
