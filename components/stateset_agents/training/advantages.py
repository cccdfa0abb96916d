"""How much better than expected each conversation was.

Owns the step from rewards to advantages. It does not know tokens, nor where rewards come from.

Notation: N trajectories of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from stateset_agents.exceptions import TrainingError
from stateset_agents.training.algorithms import AdvantageBaseline

if TYPE_CHECKING:
    from stateset_agents.training.batching import StepRows
    from stateset_agents.training.objective import Objective

# Keeps a group with nearly equal rewards from exploding; the value that TRL uses.
STD_EPSILON = 1e-4


def step_advantages(rows: StepRows, objective: Objective) -> torch.Tensor:
    """Advantages as `objective.credit` asks: `(N,)` per conversation or `(N, K)` per turn.

    Raises:
        TrainingError: turns are to be credited, and the reward function does not tell them apart.
    """
    baseline, scale = objective.advantage_baseline, objective.scale_advantages
    if objective.credit == "episode":
        return trajectory_advantages(rows.rewards, rows.group_index, baseline=baseline, scale=scale)
    told = [rewards for rewards in rows.turn_rewards if rewards is not None]
    if len(told) < len(rows.turn_rewards):
        raise TrainingError(
            'credit="turn" needs a reward for every assistant turn, and the reward function gave '
            'none: return turn_scores in its RewardResult, or set credit="episode"'
        )
    return turn_advantages(
        told, rows.group_index, discount=objective.turn_discount, baseline=baseline, scale=scale
    )


def trajectory_advantages(
    rewards: torch.Tensor,
    group_index: torch.Tensor,
    *,
    baseline: AdvantageBaseline = "group",
    scale: bool = True,
) -> torch.Tensor:
    """Advantages `(N,)` float64 of rewards `(N,)`, group `group_index[n]` each.

    `group`: (r - mean of its group) / (std of its group + 1e-4), Shao et al. 2024
    (arXiv:2402.03300), equation 3's outcome form; without `scale` it is Dr. GRPO's, Liu et al. 2025
    (arXiv:2503.20783). `leave_one_out`: the mean is that of the group's other conversations, Kool
    et al. 2019 and RLOO, Ahmadian et al. 2024 (arXiv:2402.14740); with `scale` it is divided as
    `group` is. `batch`: mean and std of the whole step, REINFORCE++, Hu 2025 (arXiv:2501.03262).
    `none`: the reward itself, divided by the step's std if `scale` (undivided where all are equal).
    Standard deviations are the unbiased ones. Where everything that a baseline compares is equal
    (or alone), the advantage is exactly 0: nothing can be learned from it.

    Raises:
        TrainingError: a reward is NaN or infinite.
    """
    rewards = rewards.to(torch.float64)
    if not bool(torch.isfinite(rewards).all()):
        bad = [index for index, reward in enumerate(rewards.tolist()) if not _finite(reward)]
        raise TrainingError(
            f"rewards of the trajectories {bad} of this step are NaN or infinite: a reward "
            "function must return finite numbers; leave a conversation out by letting it fail"
        )
    pools = (
        [group_index == group for group in group_index.unique().tolist()]
        if baseline in ("group", "leave_one_out")
        else [torch.ones_like(rewards, dtype=torch.bool)]
    )
    advantages = torch.zeros_like(rewards)
    for pool in pools:
        advantages[pool] = _within(rewards[pool], baseline=baseline, scale=scale)
    return advantages


def turn_advantages(
    turn_rewards: Sequence[Sequence[float]],
    group_index: torch.Tensor,
    *,
    discount: float = 0.0,
    baseline: AdvantageBaseline = "group",
    scale: bool = True,
) -> torch.Tensor:
    """Advantages `(N, K)` float64 of every assistant turn, K the most turns, 0 where there is none.

    The return of turn k is `r_k + discount * r_(k+1) + discount^2 * r_(k+2) + ...`; it is compared
    as in `trajectory_advantages`, but with turn k of the other conversations only. Scripted users
    say the same at a turn whatever was answered, so turns of one number are alternatives to each
    other.

    Raises:
        TrainingError: a reward is NaN or infinite.
    """
    longest = max((len(rewards) for rewards in turn_rewards), default=0)
    advantages = torch.zeros(len(turn_rewards), longest, dtype=torch.float64)
    returns = torch.zeros(len(turn_rewards), longest, dtype=torch.float64)
    for number, rewards in enumerate(turn_rewards):
        following = 0.0
        for turn in reversed(range(len(rewards))):
            following = rewards[turn] + discount * following
            returns[number, turn] = following
    for turn in range(longest):
        there = torch.tensor([len(rewards) > turn for rewards in turn_rewards])
        advantages[there, turn] = trajectory_advantages(
            returns[there, turn], group_index[there], baseline=baseline, scale=scale
        )
    return advantages


def best_and_worst(rewards: torch.Tensor, group_index: torch.Tensor) -> torch.Tensor:
    """`(N,)` float64: 1 for the best conversation of each group, -1 for its worst, 0 for the others
    and for groups whose rewards are all equal. Among equals the first counts.
    """
    chosen = torch.zeros(len(rewards), dtype=torch.float64)
    for group in group_index.unique().tolist():
        members = (group_index == group).nonzero().squeeze(1)
        own = rewards[members]
        if own.max() > own.min():
            chosen[members[own.argmax()]] = 1
            chosen[members[own.argmin()]] = -1
    return chosen


def groups_without_spread(rewards: torch.Tensor, group_index: torch.Tensor) -> int:
    """How many groups have equal rewards throughout, and so teach nothing."""
    return sum(
        bool(rewards[group_index == group].max() == rewards[group_index == group].min())
        for group in group_index.unique().tolist()
    )


def groups_to_replace(rows: StepRows, num_groups: int, objective: Objective) -> list[int]:
    """Which of the step's groups, counted from 0, have no two different rewards: those that dynamic
    sampling replaces (DAPO, Yu et al. 2025, arXiv:2503.14476, equation 11).

    What is compared is what advantages compare: rewards of conversations, or with turns credited
    the returns of the same turn. A group of which everything failed, or all but one conversation,
    is among them.

    Raises:
        TrainingError: as `step_advantages`.
    """
    compared = replace(objective, advantage_baseline="group", scale_advantages=False)
    differs = step_advantages(rows, compared) != 0
    if differs.dim() == 2:
        differs = differs.any(dim=1)
    teaching = set(rows.group_index[differs].tolist())
    return [group for group in range(num_groups) if group not in teaching]


def _within(rewards: torch.Tensor, *, baseline: AdvantageBaseline, scale: bool) -> torch.Tensor:
    """Advantages of those that are compared with one another."""
    count = len(rewards)
    equal = count < 2 or bool(rewards.max() == rewards.min())
    if baseline == "none":
        advantages = rewards
    elif equal:
        return torch.zeros_like(rewards)
    else:
        advantages = rewards - rewards.mean()
        if baseline == "leave_one_out":
            # the same as the distance to the mean of the others
            advantages = advantages * count / (count - 1)
    return advantages / (rewards.std() + STD_EPSILON) if scale and not equal else advantages


def _finite(value: float) -> bool:
    return value - value == 0
