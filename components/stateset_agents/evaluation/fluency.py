"""How natural are the answers, in the words of the model that training started from?

Fluency is the mean log-likelihood per sampled token of a conversation's answers under the *base*
model, at temperature 1, each answer given everything before it. Training may move it a little;
a large fall means words that the base finds odd, a large rise means words it finds too easy
(repetition is the likeliest text there is), so it is held within a band on both sides.

A scenario opens with the same policy text whoever answers: the opening goes through the model once,
and its keys and values are shared by all conversations of the scenario. Logits are made for
sampled tokens alone, some at a time.

It knows tokens; it does not know rewards nor how conversations were played.

Notation: B rows, P tokens of the shared opening, T tokens after it, H hidden, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from stateset_agents.core.trajectory import MultiTurnTrajectory
from stateset_agents.exceptions import EvaluationError
from stateset_agents.rollout.rows import trajectory_rows

# Logits made at once: 512 rows of a 49,152-word vocabulary are 100 MB in float32.
_LOGITS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class _Row:
    """One forward pass: tokens, which of them were sampled, and whose they are."""

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    owner: int


@torch.inference_mode()
def answer_log_likelihoods(
    model: PreTrainedModel,
    groups: Sequence[Sequence[MultiTurnTrajectory]],
    *,
    max_batch_tokens: int = 4_096,
    on_group: Callable[[], None] | None = None,
) -> list[list[float]]:
    """Mean log-likelihood per sampled token of each trajectory, nats (natural logarithm).

    Args:
        model: the base model, in eval mode.
        groups: trajectories that open alike, by scenario; a group may mix policies and seeds.
        max_batch_tokens: rows times tokens in one forward pass, the opening not counted.
        on_group: called after each group, for a progress bar.

    Returns:
        One list a group, one number a trajectory.

    Raises:
        EvaluationError: a trajectory without a sampled token, or a log-likelihood that is not
            finite.
    """
    results = []
    for trajectories in groups:
        results.append(_group_means(model, trajectories, max_batch_tokens))
        if on_group is not None:
            on_group()
    return results


def _group_means(
    model: PreTrainedModel, trajectories: Sequence[MultiTurnTrajectory], max_batch_tokens: int
) -> list[float]:
    """One mean for each trajectory of a group."""
    rows = [
        _Row(tuple(row.token_ids), tuple(map(bool, row.loss_mask)), owner)
        for owner, trajectory in enumerate(trajectories)
        for row in trajectory_rows(trajectory)
    ]
    counts = [0] * len(trajectories)
    sums = [0.0] * len(trajectories)
    for row in rows:
        counts[row.owner] += sum(row.loss_mask)
    for trajectory, count in zip(trajectories, counts, strict=True):
        if count == 0:
            raise EvaluationError(
                f"conversation {trajectory.trajectory_id} has no sampled token, so it has no "
                "fluency; leave failed conversations out"
            )
    opening = _opening_length(rows)
    cache = _forward_opening(model, rows[0].token_ids[:opening])
    for batch in _batches(rows, opening, max_batch_tokens):
        for row, total in zip(batch, _batch_sums(model, cache, batch, opening), strict=True):
            sums[row.owner] += total
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    if not all(abs(mean) < float("inf") for mean in means):  # NaN is not below infinity either
        raise EvaluationError(
            "the base model gives a sampled answer no finite log-likelihood; are the base model "
            "and the tokenizer of the policies the same?"
        )
    return means


def _opening_length(rows: Sequence[_Row]) -> int:
    """Tokens that all rows share, ending one before the first sampled token: the position before it
    predicts it, so it must be among those that are forwarded row by row.
    """
    limit = min(row.loss_mask.index(True) for row in rows) - 1
    first = rows[0].token_ids
    for position in range(max(0, limit)):
        if any(row.token_ids[position] != first[position] for row in rows):
            return position
    return max(0, limit)


def _forward_opening(model: PreTrainedModel, token_ids: Sequence[int]) -> DynamicCache | None:
    """Keys and values of the opening for one row; None where there is no opening."""
    if not token_ids:
        return None
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([token_ids], device=model.device)
    model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


def _batches(rows: Sequence[_Row], opening: int, max_batch_tokens: int) -> Iterator[list[_Row]]:
    """Rows by length, so that little is padded, in batches of a token budget (at least one row)."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: len(row.token_ids)):
        if batch and (len(row.token_ids) - opening) * (len(batch) + 1) > max_batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _batch_sums(
    model: PreTrainedModel, cache: DynamicCache | None, batch: Sequence[_Row], opening: int
) -> list[float]:
    """Sum of the sampled tokens' log-likelihoods of each row."""
    longest = max(len(row.token_ids) for row in batch) - opening
    # Right padding behind a causal model: nothing that counts attends to it, so no attention mask.
    token_ids = torch.zeros((len(batch), longest), dtype=torch.long)
    loss_mask = torch.zeros((len(batch), longest), dtype=torch.bool)
    for i, row in enumerate(batch):
        length = len(row.token_ids) - opening
        token_ids[i, :length] = torch.tensor(row.token_ids[opening:])
        loss_mask[i, :length] = torch.tensor(row.loss_mask[opening:])
    token_ids, loss_mask = token_ids.to(model.device), loss_mask.to(model.device)
    options: dict[str, Any] = {"use_cache": False}
    if cache is not None:
        shared = copy.deepcopy(cache)  # a forward pass appends to it
        shared.batch_repeat_interleave(len(batch))
        options = {"past_key_values": shared, "use_cache": True}
    hidden = model.base_model(input_ids=token_ids, **options).last_hidden_state  # (B, T, H)
    row_index, position = loss_mask.nonzero(as_tuple=True)
    logprobs = _token_logprobs(
        model, hidden[row_index, position - 1], token_ids[row_index, position]
    )
    sums = torch.zeros(len(batch), dtype=torch.float64, device=logprobs.device)
    found: list[float] = sums.index_add_(0, row_index, logprobs.double()).tolist()
    return found


def _token_logprobs(
    model: PreTrainedModel, hidden: torch.Tensor, token_ids: torch.Tensor
) -> torch.Tensor:
    """`(N,)` log-probs of `token_ids` `(N,)` from the hidden states `(N, H)` that predict them."""
    head = model.get_output_embeddings()
    cap = getattr(model.config, "final_logit_softcapping", None)
    parts = []
    for states, targets in zip(
        hidden.split(_LOGITS_AT_ONCE), token_ids.split(_LOGITS_AT_ONCE), strict=True
    ):
        logits = head(states).float()
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        chosen = logits.gather(1, targets[:, None]).squeeze(1)
        parts.append(chosen - logits.logsumexp(dim=1))
    return torch.cat(parts)
