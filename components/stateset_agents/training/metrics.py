"""What is logged of a step beside the update's own numbers: rewards, rows, speed.

Owns the names and definitions. It does not know where they go.

Names: `reward/...` over trajectories that have one, `rollout/...` (`rollout.statistics`),
`rows/...` what was trained on and what was left out, `policy/...` (`step.train_step`),
`seconds/<stage>`, `tokens_per_second/rollout` (sampled tokens) and `/update` (tokens of rows,
shared prefixes counted in each).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean, pstdev

from stateset_agents.core.trajectory import TrajectoryGroup
from stateset_agents.rollout.scoring import part_means
from stateset_agents.rollout.statistics import rollout_statistics
from stateset_agents.training.advantages import groups_without_spread
from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.batching import StepRows
from stateset_agents.training.losses import importance_weights
from stateset_agents.training.objective import Objective
from stateset_agents.training.rollouts import StepRollout


def reward_metrics(
    groups: Sequence[TrajectoryGroup], rows: StepRows, shaped: StepRows
) -> dict[str, float]:
    """Mean and spread of the reward as the reward function gave it, mean of each part, and how many
    conversations were left out because their reward was NaN or infinite (`reward/nonfinite`).

    `reward/overlong_penalty_mean` is what `shaped` has less than `rows`, for training alone.
    `reward/std` is over the whole step, `reward/within_group_std` the mean over groups of each
    group's own (population) standard deviation: what group-relative advantages live on.
    """
    alive = [[t for t in group.trajectories if t.has_reward] for group in groups]
    everyone = [trajectory for group in alive for trajectory in group]
    rewards = [trajectory.episode_reward for trajectory in everyone]
    metrics = {
        "reward/mean": fmean(rewards),
        "reward/std": pstdev(rewards),
        "reward/min": min(rewards),
        "reward/max": max(rewards),
        "reward/within_group_std": fmean(
            pstdev(t.episode_reward for t in group) for group in alive if group
        ),
        "reward/overlong_penalty_mean": float((rows.rewards - shaped.rewards).mean()),
        "reward/nonfinite": rows.counts["nonfinite_rewards"],
        "reward/groups_without_spread": groups_without_spread(rows.rewards, rows.group_index),
    }
    metrics |= {f"reward/parts/{part}": mean for part, mean in part_means(everyone).items()}
    return metrics


def rollout_metrics(rollout: StepRollout, staleness: int) -> dict[str, float]:
    """`rollout.statistics` of the groups that are trained on, `rollout/resampled_groups` and
    `rollout/discarded_tokens` of those that were replaced, and `rollout/staleness_steps`: updates
    between the weights that sampled and those that the step starts from.
    """
    return {
        **rollout_statistics(rollout.groups),
        "rollout/resampled_groups": rollout.resampled_groups,
        "rollout/discarded_tokens": rollout.discarded_tokens,
        "rollout/staleness_steps": staleness,
    }


def row_metrics(rows: StepRows, batch: TrainingBatch) -> dict[str, float]:
    """How conversations became rows."""
    lengths = [len(row.token_ids) for row in rows.rows]
    return {
        "rollout/conversation_tokens_mean": fmean(lengths) if lengths else 0.0,
        "rows/trained": len(batch.row_lengths),
        "rows/without_advantage": len(rows.rows) - len(batch.row_lengths),
        "rows/trained_tokens": int(batch.loss_mask.sum()),
        "rows/tokens": int(batch.row_lengths.sum()),
        "rows/prompt_too_long": rows.counts["prompt_too_long"],
        "rows/cut_tokens": rows.counts["cut_tokens"],
        "rows/empty_trajectories": rows.counts["empty"],
    }


def sampling_metrics(batch: TrainingBatch, objective: Objective) -> dict[str, float]:
    """How far the policy that a step starts from (`old_logprobs`) is from the one that sampled.

    `sampling_ratio_mean` and `_max`: pi_old / pi_sampling over sampled tokens, by token or by row
    as the objective has it. `sampling_truncated_fraction`, `sampling_masked_fraction`: share of
    them whose loss weighs less than that, or nothing; 0 without correction.
    """
    old = batch.old_logprobs
    assert old is not None  # the caller has just made the first step
    batch = batch.to(old.device)
    weigh = partial(
        importance_weights,
        old,
        batch.sampling_logprobs,
        batch.loss_mask,
        level=objective.importance_sampling_level,
    )
    ratios = weigh(cap=math.inf)[batch.loss_mask]
    weights = ratios
    if objective.importance_sampling_cap is not None:
        weights = weigh(
            cap=objective.importance_sampling_cap,
            floor=objective.importance_sampling_floor,
            mode=objective.importance_sampling,
        )[batch.loss_mask]
    masked = (weights == 0) & (ratios > 0)
    return {
        "sampling_ratio_mean": float(ratios.mean()),
        "sampling_ratio_max": float(ratios.max()),
        "sampling_truncated_fraction": float(((weights < ratios) & ~masked).float().mean()),
        "sampling_masked_fraction": float(masked.float().mean()),
    }


def value_metrics(batch: TrainingBatch) -> dict[str, float]:
    """How well the critic foresaw, over decisions; nothing without one.

    `value_mean` and `return_mean`; `value_explained_variance`: 1 - var(return - value) /
    var(return), 1 = foreseen, 0 = no better than the mean, 0 as well where all returns are equal.
    """
    if batch.returns is None or batch.old_values is None or batch.value_weights is None:
        return {}
    decisions = batch.value_weights > 0
    values, returns = batch.old_values[decisions].double(), batch.returns[decisions].double()
    spread = float(returns.var(correction=0))
    unexplained = float((returns - values).var(correction=0))
    return {
        "value_mean": float(values.mean()),
        "return_mean": float(returns.mean()),
        "value_explained_variance": 1 - unexplained / spread if spread > 1e-12 else 0.0,
    }


def with_rates(metrics: dict[str, float], seconds: Mapping[str, float]) -> dict[str, float]:
    """Add each stage's seconds, the whole step's, and tokens per second.

    Of conversations that were played a step ahead, `seconds/rollout` lies within an earlier step.
    """
    metrics |= {f"seconds/{stage}": value for stage, value in seconds.items()}
    tokens = {
        "rollout": metrics["rollout/sampled_tokens"] + metrics["rollout/discarded_tokens"],
        "update": metrics["rows/tokens"],
    }
    for stage, count in tokens.items():
        if seconds[stage] > 0:  # of pairs that were there already, nothing was played
            metrics[f"tokens_per_second/{stage}"] = count / seconds[stage]
    return metrics
