"""The reference's log-probs of pairs that are trained on again and again: it never changes.

Owns how many are kept. It does not know policies.

Notation: B rows, T tokens.
"""

from __future__ import annotations

import hashlib

import torch

from stateset_agents.training.batch import TrainingBatch

# Those of 64 million sampled tokens.
MOST_BYTES = 2**28


class ReferenceCache:
    """Log-probs by what they are of: the tokens of a pair, and which of them were sampled.

    Those that came first are kept, as many as go into `limit_bytes`; the others are computed each
    time. Every pair comes as often as any other, so no choice among them would save more.
    """

    def __init__(self, limit_bytes: int = MOST_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._known: dict[bytes, torch.Tensor] = {}
        self._bytes = 0

    def get(self, pair: TrainingBatch) -> torch.Tensor | None:
        """`(B, T)` on the pair's device, 0 where not sampled; None where it is not known."""
        known = self._known.get(_name(pair))
        if known is None:
            return None
        spread = torch.zeros_like(pair.sampling_logprobs)
        return spread.masked_scatter(pair.loss_mask, known.to(spread.device))

    def put(self, pair: TrainingBatch, logprobs: torch.Tensor) -> None:
        """Keep `(B, T)` float32, if there is still room."""
        known = logprobs[pair.loss_mask].cpu()
        size = known.numel() * known.element_size()
        if self._bytes + size <= self._limit_bytes:
            self._known[_name(pair)] = known
            self._bytes += size


def _name(pair: TrainingBatch) -> bytes:
    named = hashlib.blake2b(str(tuple(pair.token_ids.shape)).encode(), digest_size=16)
    for part in (pair.token_ids, pair.loss_mask):
        named.update(part.cpu().numpy().tobytes())
    return named.digest()
