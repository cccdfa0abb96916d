"""The batch that a step's update works on: rows with what each token is to be credited with.

Owns which kind of credit an objective asks for. It does not know models: what a critic has to say
is filled in by the update.
"""

from __future__ import annotations

import torch

from stateset_agents.training.advantages import best_and_worst, step_advantages
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
    until `critic.with_advantages` has run. For an objective on pairs the rows of a group's best
    conversation have 1 in `advantages`, those of its worst -1, and there are no others.

    Raises:
        TrainingError: as `step_advantages` and `with_decisions`.
    """
    by_value = objective.advantage_baseline == "value"
    if objective.loss is None:
        credited = best_and_worst(rows.rewards, rows.group_index)
    elif by_value:
        credited = torch.zeros_like(rows.rewards)
    else:
        credited = step_advantages(rows, objective)
    batch = make_batch(
        rows,
        credited,
        loss_aggregation=objective.loss_aggregation,
        max_completion_length=config.max_completion_length,
        pad_token_id=pad_token_id,
        temperature=temperature,
        keep_all_rows=by_value or objective.kl_coefficient > 0,
    )
    if not by_value:
        return batch
    return with_decisions(batch, rows, value_level=objective.value_level, credit=objective.credit)
