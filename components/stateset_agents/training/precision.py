"""The number format that training computes in, and what keeps float16's gradients from vanishing.

Owns the choice of a format and the loss scale. What the optimizer changes is float32 in every case;
that is the policy's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Literal

import torch

from stateset_agents.inference.loading import has_native_bfloat16, has_native_float16
from stateset_agents.training.config import TrainingConfig

_log = logging.getLogger(__name__)

# Values of torch.amp.GradScaler.
INITIAL_SCALE = 2.0**16
GROWTH_STEPS = 2000


def computing_dtype(
    config: TrainingConfig, device: str
) -> Literal["bfloat16", "float16", "float32"]:
    """What `bf16` and `fp16` come to on this hardware.

    Where it has no products in that format they would be slower than float32's, so it is float32
    there; for `fp16`, which only somebody who wants it sets, with a warning.
    """
    if config.fp16:
        if has_native_float16(device):
            return "float16"
        _log.warning(
            "fp16=True: this %s computes float16 slower than float32, so training computes in "
            "float32; a CUDA device, or a processor with avx512_fp16, would do it in float16",
            "processor" if torch.device(device).type == "cpu" else device,
        )
        return "float32"
    return "bfloat16" if config.bf16 and has_native_bfloat16(device) else "float32"


class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2).

    float16 holds nothing below 6e-8, and gradients are often smaller: the loss is multiplied by
    `value` before the backward pass and the float32 gradients are divided by it after. Where one
    overflows, the scale is halved and the step is done again, since a batch of conversations costs
    more than a pass; after `growth_steps` steps without overflow it is doubled.
    """

    def __init__(self, value: float = INITIAL_SCALE, growth_steps: int = GROWTH_STEPS) -> None:
        self.value = value
        self.growth_steps = growth_steps
        self.steps_without_overflow = 0

    @torch.no_grad()
    def unscale(self, parameters: Iterable[torch.nn.Parameter]) -> bool:
        """Divide the gradients by the scale. False where one is NaN or infinite and the scale could
        be halved: compute them again. At a scale of 1 it is not the scale's fault, and True.
        """
        gradients = [one.grad for one in parameters if one.grad is not None]
        overflowed = any(not bool(torch.isfinite(gradient).all()) for gradient in gradients)
        if overflowed and self.value > 1:
            self.value = max(1.0, self.value / 2)
            self.steps_without_overflow = 0
            return False
        for gradient in gradients:
            gradient.div_(self.value)
        self.steps_without_overflow += 1
        if self.steps_without_overflow >= self.growth_steps:
            self.value, self.steps_without_overflow = self.value * 2, 0
        return True

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {"value": self.value, "steps_without_overflow": self.steps_without_overflow}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from there."""
        self.value = float(state["value"])
        self.steps_without_overflow = int(state["steps_without_overflow"])
