"""A policy whose weights, gradients and optimizer state are shared out over processes: FSDP.

Owns how torch's `fully_shard` (FSDP2) is laid over a policy, and how whole tensors come out of it
and go in again. It does not know training, nor how processes were joined.

The engine of each process keeps its own whole copy of the weights, in which it speaks; what is
shared out is the trainer's float32 copy with its gradients and AdamW's two moments, four numbers
for each weight.

Notation: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import distribute_tensor

from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.policy import Policy
from stateset_agents.training.processes import whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ShardedPolicy(Policy):
    """A `Policy` of all weights (no adapter), of which each process has a part.

    Every process makes the same calls in the same order: a forward pass gathers a layer's weights
    from all, a backward pass adds up its gradients over all. Who has fewer micro-batches than
    others calls `idle_pass` instead. With `config.bf16` gathered weights are bfloat16, rounded to
    nearest, and the parts stay float32.
    """

    reduces_gradients = True
    can_share_prefix = False

    def __init__(self, model: PreTrainedModel, config: TrainingConfig, *, count: int) -> None:
        """As `Policy`, over `count` processes that are joined."""
        super().__init__(model, config.model_copy(update={"bf16": False}))
        narrow = torch.bfloat16 if config.bf16 else None
        if narrow is not None and self._frozen_copy is not None:
            self._frozen_copy.to(dtype=narrow)  # type: ignore[call-arg]
        self._trunk = _Trunk(self.model)
        mesh = init_device_mesh(self.device.type, (count,))
        precision = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32)
        for layer in _layers(self.model):
            fully_shard(layer, mesh=mesh, mp_policy=precision)
        fully_shard(self._trunk, mesh=mesh, mp_policy=precision)
        module: Any
        for module in self._trunk.modules():
            if hasattr(module, "set_gradient_divide_factor"):
                # token weights have the whole step's sum in mind, not a mean over processes
                module.set_gradient_divide_factor(1.0)
                # gloo has no other way to divide by 1
                module.set_force_sum_reduction_for_comms(True)
        self.trainable = dict(self.model.named_parameters())

    @property
    def backbone(self) -> torch.nn.Module:
        """The model without its head; calling it gathers the head as well."""
        return super().backbone if self._use_frozen_copy else self._trunk

    def idle_pass(self) -> None:
        """Take part in the others' forward and backward pass, and add nothing to the gradient."""
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        states = self.backbone(input_ids=token, use_cache=False)[0]
        (0.0 * (states.sum() + self.head_weight[0].sum())).backward()

    def named_merged_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Policy`; each is gathered when its turn comes, so every process iterates."""
        for name, value in self.model.named_parameters():
            yield name, whole(value.detach())

    @torch.no_grad()
    def load_trainable(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take this process's part of each whole tensor."""
        for name, part in self.placed(tensors).items():
            self.trainable[name].copy_(part)

    def placed(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors named `<parameter>` or `<parameter>.<entry>` shared out as that parameter is;
        those of another shape (a count of steps) as they are.
        """
        result = {}
        for name, tensor in tensors.items():
            parameter: Any = self.trainable.get(name, self.trainable.get(name.rpartition(".")[0]))
            alike = parameter is not None and parameter.shape == tensor.shape
            result[name] = (
                distribute_tensor(
                    tensor.to(parameter.device), parameter.device_mesh, parameter.placements
                )
                if alike
                else tensor
            )
        return result


class _Trunk(torch.nn.Module):
    """The model and its head as one unit of FSDP, without the head's product in the forward pass:
    log-probs are computed from hidden states and the head's weight, which is whole from then on
    until the backward pass has used it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.base = model.base_model
        self.head = model.get_output_embeddings()

    def forward(self, **inputs: Any) -> Any:
        """What the base model gives."""
        return self.base(**inputs)


def _layers(model: Any) -> list[torch.nn.Module]:
    """The model's repeated blocks, by the names that transformers does not split over devices."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]
