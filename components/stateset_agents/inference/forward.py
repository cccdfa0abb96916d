"""How the engine gets logits: by its own pass where it has one for the model, else by the module.

Owns the choice, and the pass through transformers' module.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from stateset_agents.inference.attention import AttentionPlan
from stateset_agents.inference.llama_forward import LlamaForward
from stateset_agents.inference.packed_linear import pack_linears


class Forward(Protocol):
    """A model's forward pass over packed rows."""

    def __call__(self, token_ids: Tensor, plan: AttentionPlan, last: Tensor) -> Tensor:
        """Logits `(B, V)` of the rows `last`, `(B,)`, of the tokens `(N,)` that the plan packs."""

    def pack(self) -> None:
        """Take up weights that were written to."""


class ModuleForward:
    """The pass of transformers' module, whatever the model, with our attention inside."""

    def __init__(self, model: PreTrainedModel, *, pack_weights: bool) -> None:
        self._model: Any = model
        self._packed = pack_linears(model) if pack_weights else []

    def __call__(self, token_ids: Tensor, plan: AttentionPlan, last: Tensor) -> Tensor:
        """Logits `(B, V)` of the rows `last`, `(B,)`, of the tokens `(N,)` that the plan packs."""
        output = self._model(
            input_ids=token_ids.unsqueeze(0),
            position_ids=plan.positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=last,
            slot_plan=plan,
        )
        logits: Tensor = output.logits[0]
        return logits

    def pack(self) -> None:
        """Take up weights that were written to."""
        for linear in self._packed:
            linear.pack()


def forward_of(model: PreTrainedModel, *, pack_weights: bool) -> Forward:
    """The fastest pass that computes the model, whose attention is ours already."""
    if LlamaForward.serves(model):
        return LlamaForward(model, pack_weights=pack_weights)
    return ModuleForward(model, pack_weights=pack_weights)
