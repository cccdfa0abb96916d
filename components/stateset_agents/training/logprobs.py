"""Log-probs of what was sampled, recomputed by the policy that is trained.

Owns the forward pass of the update. Two things make it cheap: what the conversations of a group
begin with goes through the model once, and logits are computed only where `loss_mask` is True, in
chunks, never `(B, T, V)`.

Notation: B rows, T tokens, P tokens of shared prefix, N sampled tokens, D hidden size, V
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.policy import Policy
from stateset_agents.training.row_pack import pack_rows

# Logits of one chunk, in the model's dtype: enough positions for an efficient product, and small
# enough that the allocator keeps the memory instead of asking the system for fresh pages each time.
_CHUNK_BYTES = 2**24
# Logits of one piece of a chunk, in float32: what is done to each of them stays in the cache.
_PIECE_BYTES = 2**21


@dataclass(frozen=True, slots=True, eq=False)
class TokenLogprobs:
    """Per-token results `(B, T)`, 0 where `loss_mask` is False.

    Attributes:
        logprobs: differentiable in the policy's trainable parameters, natural logarithm, at the
            batch's temperature.
        entropy: of the next-token distribution at that temperature, in nats; not differentiable.
        states: `(N, D)`, what each sampled token was predicted from, row by row; differentiable.
    """

    logprobs: torch.Tensor
    entropy: torch.Tensor
    states: torch.Tensor


def batch_logprobs(policy: Policy, batch: TrainingBatch, *, share_prefix: bool) -> TokenLogprobs:
    """Log-probs of a (micro-)batch's sampled tokens; see `sampled_states` for `share_prefix`."""
    states = sampled_states(policy, batch, share_prefix=share_prefix)
    logprobs, entropy = SampledLogprobs.apply(
        states, policy.head_weight, batch.token_ids[batch.loss_mask], batch.temperature
    )
    return TokenLogprobs(
        scattered(logprobs, batch.loss_mask), scattered(entropy, batch.loss_mask), states
    )


def sampled_states(policy: Policy, batch: TrainingBatch, *, share_prefix: bool) -> torch.Tensor:
    """Hidden states `(N, D)` that predict a (micro-)batch's sampled tokens, row by row.

    With `share_prefix` all rows must be of one group; the prefix is forwarded once and its keys and
    values, gradients included, serve every row.
    """
    prefix = int(batch.shared_prefix_lengths.min()) if share_prefix else 0
    if batch.token_ids.shape[1] <= policy.longest_packed_row:
        pack = pack_rows(batch, prefix)
        return policy.packed_states(pack).index_select(0, pack.predicting)
    # the state at t - 1 predicts token t; a prefix ends before the state that is needed first
    sampled = batch.loss_mask[:, prefix + 1 :]
    return _hidden_states(policy, batch.token_ids, prefix)[:, :-1][sampled]


def scattered(values: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """`(N,)`, a number for each sampled token, to `(B, T)`, 0 elsewhere."""
    spread = torch.zeros(loss_mask.shape, dtype=values.dtype, device=values.device)
    return spread.masked_scatter(loss_mask, values)


class SampledLogprobs(torch.autograd.Function):
    """log softmax(h W^T / temperature)[target] and the entropy, without keeping any logits.

    The gradient in h of one log-prob, (W[target] - softmax W) / temperature, does not depend on the
    loss, so it is computed while the chunk's logits are there. The head's own gradient, which only
    full training needs, has to compute the logits again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`hidden` (N, D), `weight` (V, D), `targets` (N,) to two (N,) in float32 or wider."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for part in _chunks(hidden, weight):
            logits = torch.nn.functional.linear(hidden[part], weight)
            for piece in _pieces(logits):
                scaled = logits[piece].to(wide, copy=True).div_(temperature)
                probabilities = torch.softmax(scaled, dim=1)
                # log p(i) = x(i) - log sum exp x for every i; the likeliest's p never underflows
                log_normaliser = scaled.amax(1) - probabilities.amax(1).log()
                chosen = scaled.gather(1, targets[part][piece, None]).squeeze(1)
                logprobs[part][piece] = chosen - log_normaliser
                mean = torch.linalg.vecdot(probabilities, scaled)
                entropy[part][piece] = log_normaliser - mean
                logits[piece] = probabilities
            if gradient is not None:
                gradient[part] = (weight[targets[part]] - logits @ weight) / temperature
        ctx.temperature = temperature
        ctx.save_for_backward(hidden, weight, targets, gradient)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(
        ctx: Any, grad: torch.Tensor, _entropy: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """Gradients of `hidden` and, where asked for, `weight`."""
        hidden, weight, targets, gradient = ctx.saved_tensors
        grad_hidden = None if gradient is None else (gradient * grad[:, None]).to(hidden.dtype)
        if not ctx.needs_input_grad[1]:
            return grad_hidden, None, None, None
        grad_weight = torch.zeros_like(weight, dtype=grad.dtype)
        for part in _chunks(hidden, weight):
            logits = torch.nn.functional.linear(hidden[part], weight)
            scale = grad[part, None] / ctx.temperature
            for piece in _pieces(logits):
                scaled = logits[piece].to(grad.dtype, copy=True).div_(ctx.temperature)
                slope = torch.softmax(scaled, dim=1).mul_(-scale[piece])
                slope.scatter_add_(1, targets[part][piece, None], scale[piece])
                logits[piece] = slope
            grad_weight += logits.t() @ hidden[part]
        return grad_hidden, grad_weight.to(weight.dtype), None, None


def _hidden_states(policy: Policy, token_ids: torch.Tensor, prefix: int) -> torch.Tensor:
    """`(B, T - P, D)` of the tokens after the prefix. Rows are padded on the right and attention is
    causal, so padding reaches no other token and needs no mask.
    """
    if prefix == 0:
        plain: torch.Tensor = policy.backbone(input_ids=token_ids, use_cache=False)[0]
        return plain
    cache = DynamicCache(config=policy.model.config)
    policy.backbone(input_ids=token_ids[:1, :prefix], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(token_ids))
    shared: torch.Tensor = policy.backbone(
        input_ids=token_ids[:, prefix:], past_key_values=cache, use_cache=True
    )[0]
    return shared


def _chunks(hidden: torch.Tensor, weight: torch.Tensor) -> list[slice]:
    return _slices(len(hidden), _CHUNK_BYTES // (weight.element_size() * weight.shape[0]))


def _pieces(logits: torch.Tensor) -> list[slice]:
    if logits.device.type != "cpu":
        return [slice(None)]
    return _slices(len(logits), _PIECE_BYTES // (4 * logits.shape[1]))


def _slices(count: int, size: int) -> list[slice]:
    size = max(1, size)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
