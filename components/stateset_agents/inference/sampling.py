"""From logits to tokens and their log-probs.

Owns the arithmetic of one sampling step. It keeps no random state: each row brings its own uniform
number, so what is drawn for one request does not depend on the others in its batch.

Notation: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stateset_agents.exceptions import EngineError
from stateset_agents.inference.engine import SamplingParams

_BLOCK = 256
# Nucleus sampling looks at this many likely tokens first, and sorts the vocabulary only if they
# do not hold the mass that was asked for.
_NUCLEUS_FIRST_LOOK = 1024


@dataclass(frozen=True, slots=True)
class Draw:
    """What one row asks for: how, with which uniform number in [0, 1), after which tokens.

    `history` (prompt and answer so far) is read only where a repetition penalty is set.
    """

    params: SamplingParams
    uniform: float
    history: Sequence[int] = ()


def sample(logits: Tensor, draws: Sequence[Draw]) -> tuple[list[int], list[float]]:
    """Draw one token a row.

    Args:
        logits: `(B, V)`, of any float type; computed with in float32.
        draws: B of them.

    Returns:
        B token ids, and B log-probs at each row's temperature (1 where it is 0) over the whole
        vocabulary, before penalty, top-k and top-p.

    Raises:
        EngineError: logits that are NaN or infinite.
    """
    temperatures = logits.new_tensor(
        [[draw.params.temperature or 1.0] for draw in draws], dtype=torch.float32
    )
    # One tensor of the vocabulary's size, computed in place: fresh memory costs more than the
    # arithmetic. What else is needed of the logits is a few numbers, made again below.
    weights = logits.to(torch.float32, copy=True).div_(temperatures)
    peak = weights.amax(dim=1, keepdim=True)
    sums, totals = _block_sums(weights.sub_(peak).exp_())
    if not torch.isfinite(totals).all():
        raise EngineError(
            "The model's logits are not finite. Its weights hold NaN or infinity, or its number "
            "format is too narrow; try dtype float32."
        )
    chosen = _invert(weights, sums, totals, [draw.uniform for draw in draws])
    for row, draw in enumerate(draws):
        if _is_plain(draw.params):
            continue
        chosen[row] = _draw_filtered(logits[row].float() / temperatures[row], draw)
    drawn = logits.gather(1, chosen.unsqueeze(1)).float() / temperatures
    logprobs = (drawn - peak).squeeze(1) - totals.log().float()
    return chosen.tolist(), logprobs.clamp_(max=0.0).tolist()


def _is_plain(params: SamplingParams) -> bool:
    return (
        params.temperature > 0
        and params.top_k == 0
        and params.top_p >= 1.0
        and params.repetition_penalty == 1.0
    )


def _block_sums(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Cumulated sums of blocks of the vocabulary, `(B, blocks)`, and the total `(B,)`, float64."""
    rows, vocabulary = weights.shape
    whole = vocabulary // _BLOCK * _BLOCK
    sums = weights[:, :whole].view(rows, -1, _BLOCK).sum(dim=2)
    if whole < vocabulary:
        rest = weights[:, whole:].sum(dim=1, keepdim=True)
        sums = torch.cat((sums, rest), dim=1)
    cumulated = sums.double().cumsum(dim=1)
    return cumulated, cumulated[:, -1]


def _invert(weights: Tensor, sums: Tensor, totals: Tensor, uniforms: Sequence[float]) -> Tensor:
    """Invert the cumulative distribution, `(B,)` ids: find the block, then the token inside it.

    One uniform number a token, where the Gumbel trick needs V of them.
    """
    targets = (sums.new_tensor(list(uniforms)) * totals).unsqueeze(1)
    block = _first_above(sums, targets)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp_(min=0)), 0.0)
    places = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    outside = places >= weights.shape[1]
    inner = weights.gather(1, places.clamp_(max=weights.shape[1] - 1)).double()
    inner = inner.masked_fill_(outside, 0.0).cumsum(dim=1)
    return (block * _BLOCK + _first_above(inner, targets - before)).squeeze(1)


def _first_above(cumulated: Tensor, targets: Tensor) -> Tensor:
    """Per row the first index whose cumulated weight exceeds the target, `(B, 1)`.

    Rounding can leave a target at the very end: it gets the last index that added any weight.
    """
    found = torch.searchsorted(cumulated, targets, right=True)
    last = torch.searchsorted(cumulated, cumulated[:, -1:].contiguous(), right=False)
    return torch.minimum(found, last)


def _draw_filtered(scaled: Tensor, draw: Draw) -> Tensor:
    """One row, `(V,)`, with greedy choice, repetition penalty, top-k or top-p."""
    params = draw.params
    if params.repetition_penalty != 1.0:
        scaled = _penalise(scaled, draw)
    if params.temperature == 0:
        return scaled.argmax()
    values, ids = _likely(scaled, params)
    probabilities = (values.double() - values[0].double()).exp_()
    if params.top_p < 1.0:
        # After top-k, top-p is a part of what top-k left; alone, of the whole vocabulary.
        whole = probabilities.sum() if params.top_k > 0 else _mass(scaled)
        mass = whole * params.top_p
        # A token stays while the mass before it is below top_p, so the first always stays.
        kept = probabilities.cumsum(0) - probabilities < mass
        probabilities = probabilities * kept
    cumulated = probabilities.cumsum(0).unsqueeze(0)
    target = (cumulated[:, -1:] * draw.uniform).contiguous()
    return ids[_first_above(cumulated, target)[0, 0]]


def _likely(scaled: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The tokens that can be drawn, most likely first: values and ids."""
    vocabulary = scaled.shape[0]
    if params.top_k > 0:
        first = torch.topk(scaled, min(params.top_k, vocabulary))
        return first.values, first.indices
    if params.top_p < 1.0:
        look = torch.topk(scaled, min(_NUCLEUS_FIRST_LOOK, vocabulary))
        held = (look.values.double() - look.values[0].double()).exp_().sum()
        if held >= params.top_p * _mass(scaled):
            return look.values, look.indices
    ordered = torch.sort(scaled, descending=True, stable=True)
    return ordered.values, ordered.indices


def _mass(scaled: Tensor) -> Tensor:
    """The weight of the whole vocabulary, in units of the likeliest token's."""
    return (scaled - scaled.amax()).exp().double().sum()


def _penalise(scaled: Tensor, draw: Draw) -> Tensor:
    """Divide positive and multiply negative logits of tokens that occurred (Keskar et al. 2019)."""
    seen = torch.tensor(sorted(set(draw.history)), dtype=torch.long, device=scaled.device)
    scores = scaled[seen]
    penalty = draw.params.repetition_penalty
    return scaled.index_put((seen,), torch.where(scores < 0, scores * penalty, scores / penalty))
