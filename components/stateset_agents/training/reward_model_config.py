"""The section `reward_model` of params.yaml."""

from __future__ import annotations

from pydantic import Field

from stateset_agents.inference.loading import DtypeName
from stateset_agents.settings import Settings


class RewardModelConfig(Settings):
    """How the reward model is trained and what it must reach."""

    base_layers: int = Field(default=0, ge=0)
    """Layers of the base model that are used, from the bottom; 0 means all. Fewer are faster."""
    trained_layers: int = Field(default=4, ge=0)
    """Layers at the top of those that are trained; the rest is frozen and computed once.
    0 trains the head alone."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak step size of AdamW for the layers; it warms up for a tenth and falls to 0."""
    head_learning_rate: float = Field(default=1e-3, gt=0)
    """Peak step size for the head."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled weight decay."""
    num_epochs: int = Field(default=3, ge=1)
    """How often every training pair is seen."""
    batch_pairs: int = Field(default=16, ge=1)
    """Pairs in one optimizer step, about: whole packs are taken until there are as many."""
    pack_tokens: int = Field(default=1024, ge=64)
    """The most tokens in one forward pass, shared beginnings counted once."""
    max_tokens: int = Field(default=512, ge=32)
    """Longest conversation in tokens; oldest messages are left out, the system message never."""
    center_coefficient: float = Field(default=0.01, ge=0)
    """Weight of the term that keeps the scores of a pair centred at 0; 0 means off."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    calibration_share: float = Field(default=0.15, gt=0, lt=0.5)
    """Share of the training pairs that is kept out of training to fit the temperature on."""
    min_heldout_accuracy: float = Field(default=0.7, ge=0, le=1)
    """Floor of the accuracy on held-out pairs; below it the step fails and writes no model."""
    seed: int = 0
    """Decides the head's start, the calibration pairs and the order of training."""
    dtype: DtypeName = "auto"
    """Number format of the frozen part; what is trained has float32 master weights."""
