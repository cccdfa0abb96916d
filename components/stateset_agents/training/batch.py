"""The world of tensors: what the training step works on.

`TrainingBatch` is the second of the two objects that cross rooms. It is frozen; stages that add
something return a new one (`dataclasses.replace`).

Notation: B rows, T tokens (the longest row, right-padded).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBatch:
    """Rows of token ids with what training needs to know of each token.

    A row is one forward pass: the samples of an episode whose contexts extend each other exactly
    are merged into one row; where a context was rewritten, a new row starts.

    Attributes:
        token_ids: `(B, T)` int64, right-padded.
        row_lengths: `(B,)` int64, tokens before the padding.
        loss_mask: `(B, T)` bool, True = the policy sampled this token and is trained on it.
        sampling_logprobs: `(B, T)` float32, as the engine reported them; 0 where not sampled.
        advantages: `(B, T)` float32, 0 where not sampled.
        loss_weights: `(B, T)` float32, how much each token's loss counts in the sum over the whole
            step, 0 where not sampled; micro-batches add up to the step because of it.
        trajectory_index: `(B,)` int64, which trajectory of the step a row belongs to.
        group_index: `(B,)` int64, which group; rows of one group are contiguous.
        shared_prefix_lengths: `(B,)` int64, tokens at the start that all rows of the group share.
        old_logprobs: `(B, T)` float32 or None; None on-policy (the new ones, detached).
        reference_logprobs: `(B, T)` float32 or None; None when the KL coefficient is 0.
        temperature: the sampling temperature that every log-prob here is at.
        rewards: `(B, T)` float32 or None, what was earned at each sampled token; with a critic.
        decision_index: `(B, T)` int64 or None, which decision of its trajectory, counted from 0, a
            sampled token belongs to (`decisions.py`); 0 elsewhere.
        value_weights: `(B, T)` float32 or None, how much the value before each token counts in the
            value loss of the step; 0 but at the first token of a decision.
        old_values: `(B, T)` float32 or None, the critic's estimates before the update.
        returns: `(B, T)` float32 or None, what they should have been.
    """

    token_ids: torch.Tensor
    row_lengths: torch.Tensor
    loss_mask: torch.Tensor
    sampling_logprobs: torch.Tensor
    advantages: torch.Tensor
    loss_weights: torch.Tensor
    trajectory_index: torch.Tensor
    group_index: torch.Tensor
    shared_prefix_lengths: torch.Tensor
    old_logprobs: torch.Tensor | None = None
    reference_logprobs: torch.Tensor | None = None
    temperature: float = 1.0
    rewards: torch.Tensor | None = None
    decision_index: torch.Tensor | None = None
    value_weights: torch.Tensor | None = None
    old_values: torch.Tensor | None = None
    returns: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> TrainingBatch:
        """The rows `(b,)` int64 in that order, cut to the longest of them."""
        width = int(self.row_lengths[rows].max()) if len(rows) else 0
        changed: dict[str, Any] = {
            field.name: value[rows, :width] if value.dim() == 2 else value[rows]
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **changed)

    def to(self, device: torch.device | str) -> TrainingBatch:
        """The same batch on another device."""
        changed: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **changed)
