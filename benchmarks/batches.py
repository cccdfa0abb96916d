"""A step's batch of a workload's exact shape, of random tokens: no rollout is needed to time, or to
compare, what comes after it.

Notation: B rows, T tokens.
"""

from __future__ import annotations

import torch

from benchmarks.workloads import Workload
from stateset_agents.training.batch import TrainingBatch


def random_batch(workload: Workload, vocabulary: int, *, seed: int = 0) -> TrainingBatch:
    """Rows that share their group's prompt, with advantages of both signs in every group, weighed
    as GRPO weighs them. Ids keep clear of the lowest hundredth of the vocabulary, where special
    tokens are.
    """
    draw = torch.Generator().manual_seed(seed)
    rows, width = workload.rows, workload.conversation_tokens
    low = vocabulary // 100
    token_ids = torch.randint(low, vocabulary, (rows, width), generator=draw)
    group_index = torch.arange(rows) // workload.group
    prompts = token_ids[:: workload.group, : workload.prompt_tokens]
    token_ids[:, : workload.prompt_tokens] = prompts[group_index]
    loss_mask = _sampled(workload).expand(rows, -1)
    signs = torch.where(torch.arange(rows) % 2 == 0, 1.0, -0.5)
    sampled = workload.turns * workload.answer_tokens
    return TrainingBatch(
        token_ids=token_ids,
        row_lengths=torch.full((rows,), width),
        loss_mask=loss_mask,
        sampling_logprobs=torch.zeros(rows, width),
        advantages=loss_mask * signs[:, None],
        loss_weights=loss_mask / (rows * sampled),
        trajectory_index=torch.arange(rows),
        group_index=group_index,
        shared_prefix_lengths=torch.full((rows,), workload.prompt_tokens - 1),
    )


def _sampled(workload: Workload) -> torch.Tensor:
    """`(T,)` bool of one conversation."""
    turn = [True] * workload.answer_tokens + [False] * workload.user_tokens
    row = [False] * workload.prompt_tokens + turn * workload.turns
    return torch.tensor(row[: workload.conversation_tokens])
