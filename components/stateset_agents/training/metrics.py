"""What is logged of a step beside the update's own numbers: rewards, rows, speed.

Owns the names and definitions. It does not know where they go.

Names: `reward/...` over trajectories that have one, `rollout/...` (`rollout.statistics`),
`rows/...` what was trained on and what was left out, `policy/...` (`step.train_step`),
`seconds/<stage>`, `tokens_per_second/rollout` (sampled tokens) and `/update` (tokens of rows,
shared prefixes counted in each).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

from stateset_agents.core.trajectory import TrajectoryGroup
from stateset_agents.rollout.statistics import rollout_statistics
from stateset_agents.training.advantages import groups_without_spread
from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.batching import StepRows


def reward_metrics(groups: Sequence[TrajectoryGroup], rows: StepRows) -> dict[str, float]:
    """Mean and spread of the reward, mean of each part, and how many conversations were left out
    because their reward was NaN or infinite (`reward/nonfinite`).

    `reward/std` is over the whole step, `reward/within_group_std` the mean over groups of each
    group's own (population) standard deviation: what group-relative advantages live on.
    """
    alive = [[t for t in group.trajectories if t.has_reward] for group in groups]
    everyone = [trajectory for group in alive for trajectory in group]
    not_failed = sum(not t.failed for group in groups for t in group.trajectories)
    rewards = [trajectory.episode_reward for trajectory in everyone]
    metrics = {
        "reward/mean": fmean(rewards),
        "reward/std": pstdev(rewards),
        "reward/min": min(rewards),
        "reward/max": max(rewards),
        "reward/within_group_std": fmean(
            pstdev(t.episode_reward for t in group) for group in alive if group
        ),
        "reward/nonfinite": not_failed - len(everyone),
        "reward/groups_without_spread": groups_without_spread(rows.rewards, rows.group_index),
    }
    for part in sorted({name for trajectory in everyone for name in trajectory.reward_parts}):
        scores = [t.reward_parts[part] for t in everyone if part in t.reward_parts]
        metrics[f"reward/parts/{part}"] = fmean(scores)
    return metrics


def row_metrics(
    groups: Sequence[TrajectoryGroup], rows: StepRows, batch: TrainingBatch
) -> dict[str, float]:
    """The rollout's statistics, and how its conversations became rows."""
    lengths = [len(row.token_ids) for row in rows.rows]
    return {
        **rollout_statistics(groups),
        "rollout/conversation_tokens_mean": fmean(lengths) if lengths else 0.0,
        "rows/trained": len(batch.row_lengths),
        "rows/without_advantage": len(rows.rows) - len(batch.row_lengths),
        "rows/trained_tokens": int(batch.loss_mask.sum()),
        "rows/tokens": int(batch.row_lengths.sum()),
        "rows/prompt_too_long": rows.counts["prompt_too_long"],
        "rows/cut_tokens": rows.counts["cut_tokens"],
        "rows/empty_trajectories": rows.counts["empty"],
    }


def with_rates(metrics: dict[str, float], seconds: dict[str, float]) -> dict[str, float]:
    """Add each stage's seconds, their sum, and tokens per second."""
    metrics |= {f"seconds/{stage}": value for stage, value in seconds.items()}
    metrics["seconds/step"] = sum(seconds.values())
    rates = {"rollout": "rollout/sampled_tokens", "update": "rows/tokens"}
    for stage, tokens in rates.items():
        metrics[f"tokens_per_second/{stage}"] = metrics[tokens] / max(seconds[stage], 1e-9)
    return metrics
