"""From trajectory groups to a `TrainingBatch`, and from that to micro-batches.

Owns which conversations are trained on, what each token weighs, and which rows go through the model
together. It does not know models or losses.

Notation: B rows, T tokens, N trajectories of the step that did not fail and have a reward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch

from stateset_agents.core.trajectory import MultiTurnTrajectory, TrajectoryGroup
from stateset_agents.exceptions import TrainingError
from stateset_agents.inference.token_prefix import common_prefix_length
from stateset_agents.rollout.rows import trajectory_rows
from stateset_agents.training.algorithms import LossAggregation
from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.config import TrainingConfig

# Below this many tokens a second call of the model costs more than the shared prefix saves.
MIN_SHARED_PREFIX = 16


@dataclass(frozen=True, slots=True)
class StepRow:
    """One row before padding, `(T,)` each, and where it comes from."""

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    sampling_logprobs: tuple[float, ...]
    trajectory: int
    group: int
    turn_index: tuple[int, ...] = ()


@dataclass(slots=True)
class StepRows:
    """What a step can train on, and what was left out.

    Attributes:
        rows: in the order of groups and trajectories.
        rewards: `(N,)` float64.
        group_index: `(N,)` int64.
        turn_rewards: per trajectory one number for each assistant turn; None where the reward
            function does not tell turns apart.
        answer_tokens: per trajectory, for each assistant turn, the tokens that were sampled in the
            longest of its calls of the model; each call had `max_new_tokens` of room.
        counts: `failed` trajectories, `nonfinite_rewards` (trajectories whose reward is NaN or
            infinite, left out like failed ones), `prompt_too_long` rows, `cut_tokens`, `empty`
            trajectories in which nothing was sampled.
    """

    rows: list[StepRow] = field(default_factory=list)
    rewards: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    group_index: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    counts: dict[str, int] = field(default_factory=dict)
    turn_rewards: list[list[float] | None] = field(default_factory=list)
    answer_tokens: list[list[int]] = field(default_factory=list)


def step_rows(groups: Sequence[TrajectoryGroup], config: TrainingConfig) -> StepRows:
    """Turn a step's conversations into rows. Those that failed, or whose reward is no finite
    number, give none and take part in nothing, a baseline included.

    Raises:
        TrainingError: there are conversations that did not fail, and none of them has a finite
            reward.
    """
    counts = dict.fromkeys(
        ("failed", "nonfinite_rewards", "empty", "prompt_too_long", "cut_tokens"), 0
    )
    step = StepRows(counts=counts)
    rewards: list[float] = []
    of_group: list[int] = []
    for group_number, group in enumerate(groups):
        for trajectory in group.trajectories:
            if trajectory.failed:
                counts["failed"] += 1
                continue
            turn_rewards = _turn_rewards(trajectory)
            if not all(map(math.isfinite, [trajectory.episode_reward, *(turn_rewards or [])])):
                counts["nonfinite_rewards"] += 1
                continue
            step.rows += _rows_of(trajectory, len(rewards), group_number, config, counts)
            step.turn_rewards.append(turn_rewards)
            step.answer_tokens.append(_answer_tokens(trajectory))
            rewards.append(trajectory.episode_reward)
            of_group.append(group_number)
    if counts["nonfinite_rewards"] and not rewards:
        raise TrainingError(
            f"the rewards of all {counts['nonfinite_rewards']} conversations of this step are NaN "
            "or infinite: a reward function must return finite numbers; single ones that are not "
            "are left out and counted"
        )
    step.rewards = torch.tensor(rewards, dtype=torch.float64)
    step.group_index = torch.tensor(of_group, dtype=torch.int64)
    return step


def make_batch(
    step: StepRows,
    advantages: torch.Tensor,
    *,
    loss_aggregation: LossAggregation,
    max_completion_length: int,
    pad_token_id: int,
    temperature: float,
    keep_all_rows: bool,
) -> TrainingBatch:
    """Pad a step's rows into one batch.

    `advantages` is `(N,)`, one per trajectory, or `(N, K)`, one per assistant turn of each.

    Without `keep_all_rows`, rows whose advantage is 0 are left out after they have been counted in
    the weights: with no KL term their gradient is 0. The batch may then have no rows at all.
    """
    weights = token_weights(step.rows, loss_aggregation, max_completion_length)
    values = [_token_advantages(row, advantages) for row in step.rows]
    kept = [n for n in range(len(step.rows)) if keep_all_rows or any(values[n])]
    rows = [step.rows[n] for n in kept]
    width = max((len(row.token_ids) for row in rows), default=0)
    loss_mask = _padded([row.loss_mask for row in rows], width, False, torch.bool)
    weight_of_row = torch.tensor([weights[n] for n in kept], dtype=torch.float32)
    return TrainingBatch(
        token_ids=_padded([row.token_ids for row in rows], width, pad_token_id, torch.int64),
        row_lengths=torch.tensor([len(row.token_ids) for row in rows], dtype=torch.int64),
        loss_mask=loss_mask,
        sampling_logprobs=_padded(
            [row.sampling_logprobs for row in rows], width, 0.0, torch.float32
        ),
        advantages=_padded([values[n] for n in kept], width, 0.0, torch.float32),
        loss_weights=loss_mask * weight_of_row[:, None],
        trajectory_index=torch.tensor([row.trajectory for row in rows], dtype=torch.int64),
        group_index=torch.tensor([row.group for row in rows], dtype=torch.int64),
        shared_prefix_lengths=torch.tensor(_shared_prefixes(rows), dtype=torch.int64),
        temperature=temperature,
    )


def _turn_rewards(trajectory: MultiTurnTrajectory) -> list[float] | None:
    rewards = [turn.reward for turn in trajectory.assistant_turns]
    told = [reward for reward in rewards if reward is not None]
    return told if len(told) == len(rewards) else None


def _answer_tokens(trajectory: MultiTurnTrajectory) -> list[int]:
    last = max(0, len(trajectory.assistant_turns) - 1)
    longest: dict[int, int] = {}
    for sample in trajectory.samples:
        turn = min(sample.turn, last)
        longest[turn] = max(longest.get(turn, 0), len(sample.token_ids))
    return [longest.get(turn, 0) for turn in range(max(longest, default=-1) + 1)]


def _rows_of(
    trajectory: MultiTurnTrajectory,
    number: int,
    group: int,
    config: TrainingConfig,
    counts: dict[str, int],
) -> list[StepRow]:
    found = trajectory_rows(trajectory)
    counts["empty"] += not any(any(row.loss_mask) for row in found)
    fitted = [
        _fit(
            StepRow(
                row.token_ids,
                row.loss_mask,
                row.sampling_logprobs,
                trajectory=number,
                group=group,
                turn_index=row.turn_index,
            ),
            config,
            counts,
        )
        for row in found
    ]
    return [row for row in fitted if row is not None]


def _token_advantages(row: StepRow, advantages: torch.Tensor) -> list[float]:
    """`(T,)`, 0 where nothing was sampled."""
    own: list[float] = advantages[row.trajectory].reshape(-1).tolist()
    if advantages.dim() == 1:
        return [own[0] if sampled else 0.0 for sampled in row.loss_mask]
    return [
        own[turn] if sampled else 0.0
        for sampled, turn in zip(row.loss_mask, row.turn_index, strict=True)
    ]


def micro_batches(
    batch: TrainingBatch, *, token_budget: int, share_prefix: bool
) -> list[torch.Tensor]:
    """Row indices `(b,)` of each micro-batch: rows of like length, padding included within the
    budget; a row that exceeds it alone goes alone. With `share_prefix` the rows of one micro-batch
    are of one group, and its prefix is counted once.
    """
    lengths = batch.row_lengths.tolist()
    prefixes = batch.shared_prefix_lengths.tolist() if share_prefix else [0] * len(lengths)
    groups = batch.group_index.tolist()
    pools: dict[int, list[int]] = {}
    for row in range(len(lengths)):
        # rows that share nothing may go with any others like them: pool -1
        pools.setdefault(groups[row] if prefixes[row] else -1, []).append(row)
    result: list[torch.Tensor] = []
    for pool in pools.values():
        ordered = sorted(pool, key=lambda row: (-lengths[row], row))
        result.extend(_fill(ordered, lengths, prefixes, token_budget))
    return result


def _fill(
    ordered: list[int], lengths: list[int], prefixes: list[int], token_budget: int
) -> list[torch.Tensor]:
    """Longest first, so a micro-batch's first row decides its width."""
    parts: list[list[int]] = []
    for row in ordered:
        prefix = prefixes[row]
        if parts:
            width = lengths[parts[-1][0]] - prefix
            if prefix + (len(parts[-1]) + 1) * width <= token_budget:
                parts[-1].append(row)
                continue
        parts.append([row])
    return [torch.tensor(part, dtype=torch.int64) for part in parts]


def _fit(row: StepRow, config: TrainingConfig, counts: dict[str, int]) -> StepRow | None:
    """Apply `max_prompt_length` and `max_completion_length`; None if nothing is left to train."""
    if True not in row.loss_mask:
        return None
    opening = row.loss_mask.index(True)
    if opening > config.max_prompt_length:
        counts["prompt_too_long"] += 1
        return None
    end = opening + config.max_completion_length
    counts["cut_tokens"] += sum(row.loss_mask[end:])
    return StepRow(
        row.token_ids[:end],
        row.loss_mask[:end],
        row.sampling_logprobs[:end],
        row.trajectory,
        row.group,
        row.turn_index[:end],
    )


def token_weights(
    rows: Sequence[StepRow], aggregation: LossAggregation, max_completion_length: int
) -> list[float]:
    """What each sampled token of a row weighs, so that a plain sum is the step's loss.

    `sequence_mean` (GRPO): 1 / (trajectories x sampled tokens of the trajectory).
    `token_mean` (DAPO): 1 / sampled tokens of the step.
    `sequence_sum` (RLOO): 1 / trajectories.
    `fixed_length` (Dr. GRPO): 1 / (trajectories x max_completion_length).
    `token_sum`: 1.

    Trajectories are those of `rows`. One in which nothing was sampled has no row and does not count
    here; in the baseline it does.
    """
    tokens: dict[int, int] = {}
    for row in rows:
        tokens[row.trajectory] = tokens.get(row.trajectory, 0) + sum(row.loss_mask)
    if aggregation == "sequence_mean":
        return [1 / (len(tokens) * tokens[row.trajectory]) for row in rows]
    divisors = {
        "token_mean": sum(tokens.values()),
        "sequence_sum": len(tokens),
        "fixed_length": len(tokens) * max_completion_length,
        "token_sum": 1,
    }
    return [1 / divisors[aggregation]] * len(rows) if rows else []


def _shared_prefixes(rows: Sequence[StepRow]) -> list[int]:
    """Per row, how many leading tokens its whole group shares and nobody was trained on.

    One less than what comes before the first sampled token, since the last of those predicts it.
    """
    result: list[int] = []
    for _, members in groupby(rows, key=lambda row: row.group):
        group = list(members)
        shared = min(row.loss_mask.index(True) for row in group) - 1
        for row in group[1:]:
            shared = min(shared, common_prefix_length(group[0].token_ids, row.token_ids))
        useful = len(group) > 1 and shared >= MIN_SHARED_PREFIX
        result.extend([shared if useful else 0] * len(group))
    return result


def _padded(
    rows: Sequence[Sequence[float]], width: int, padding: float, dtype: torch.dtype
) -> torch.Tensor:
    padded = torch.full((len(rows), width), padding, dtype=dtype)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.tensor(row, dtype=dtype)
    return padded
