"""The batch that a step's update works on: rows with what each token is to be credited with.

Owns which kind of credit an objective asks for. It does not know models: what a critic has to say
is filled in by the update.
"""

from __future__ import annotations

import torch

from stateset_agents.training.advantages import step_advantages
from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.batching import StepRows, make_batch
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.decisions import with_decisions
from stateset_agents.training.objective import Objective


def make_step_batch(
    rows: StepRows,
    objective: Objective,
    config: TrainingConfig,
    *,
    pad_token_id: int,
    temperature: float,
) -> TrainingBatch:
    """Pad a step's rows, rewards shaped, into a batch.

    Where the baseline is no critic's, advantages are in it, and rows that teach nothing are left
    out. With a critic every row is there, with its rewards and decisions, and `advantages` are 0
    until `critic.with_advantages` has run.

    Raises:
        TrainingError: as `step_advantages` and `with_decisions`.
    """
    by_value = objective.advantage_baseline == "value"
    batch = make_batch(
        rows,
        torch.zeros_like(rows.rewards) if by_value else step_advantages(rows, objective),
        loss_aggregation=objective.loss_aggregation,
        max_completion_length=config.max_completion_length,
        pad_token_id=pad_token_id,
        temperature=temperature,
        keep_all_rows=by_value or objective.kl_coefficient > 0,
    )
    if not by_value:
        return batch
    return with_decisions(batch, rows, value_level=objective.value_level, credit=objective.credit)
