"""The policy that is trained: a model, what of it the optimizer changes, and its reference.

Owns where the float32 truth lies (the adapter, or master weights), how it becomes the weights that
compute, and how these reach the engine and the disk. It does not know losses or batches.

Notation: B rows, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model
from transformers.pytorch_utils import Conv1D

from stateset_agents.exceptions import ConfigurationError
from stateset_agents.inference.rounding import round_weights
from stateset_agents.training.algorithms import ALGORITHMS
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.fused_norm import fuse_norms
from stateset_agents.training.lora import MergedLoraLinear
from stateset_agents.training.row_pack import PackProbe, RowPack, packed_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Policy:
    """A causal language model with trainable parameters in float32.

    `trainable` maps names to the parameters that the optimizer changes; after it did, `refresh`
    brings the computing weights up to date. `longest_packed_row` tells for which rows
    `packed_states` works, in tokens; 0 for none. The model computes in bfloat16 if `config.bf16`,
    in float16 if `config.fp16`, else in float32, and never with its own dropout: the policy that is
    updated is the one that sampled.

    Attributes:
        reduces_gradients: a backward pass adds its gradients up over the processes by itself, so
            that every process makes as many.
        can_share_prefix: a group's prefix may go through the model in a pass of its own.
    """

    reduces_gradients = False
    can_share_prefix = True

    def __init__(self, model: PreTrainedModel, config: TrainingConfig) -> None:
        """Take over `model` (it is changed in place).

        Raises:
            ConfigurationError: LoRA targets that the model does not have, or a model whose head is
                more than one matrix product.
        """
        self.dtype = _dtype_of(config)
        self.model: Any = model.to(dtype=self.dtype).eval()  # type: ignore[call-arg]
        self.model.requires_grad_(False)
        self._masters: dict[str, torch.nn.Parameter] = {}
        self._frozen_copy: PreTrainedModel | None = None
        self._use_frozen_copy = False
        self.peft_model: Any = None
        self._check_head()
        fuse_norms(self.model)
        self.longest_packed_row = self._longest_packed_row()
        self.trainable: dict[str, torch.nn.Parameter]
        if config.use_lora:
            self.trainable = self._add_adapter(config)
        else:
            on_pairs = ALGORITHMS[config.algorithm].on_pairs
            if on_pairs or config.kl_coefficient > 0 or config.kl_sample_rows > 0:
                self._frozen_copy = copy.deepcopy(self.model)
            self.trainable = self._make_masters()
        self.train_mode(False)
        self.refresh()

    # --- what computes ---------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.head_weight.device

    @property
    def backbone(self) -> torch.nn.Module:
        """The model without its head: token ids to hidden states `(B, T, D)`."""
        return self._computing_model.base_model

    @property
    def head_weight(self) -> torch.Tensor:
        """`(V, D)`: logits are hidden states times this, transposed."""
        weight: torch.Tensor = self._computing_model.get_output_embeddings().weight
        return weight

    def packed_states(self, pack: RowPack) -> torch.Tensor:
        """Hidden states `(N, D)` of the N tokens of rows of at most `longest_packed_row`."""
        with packed_attention(self._computing_model):
            states: torch.Tensor = self.backbone(
                input_ids=pack.token_ids[None],
                position_ids=pack.positions[None],
                use_cache=False,
                row_pack=pack,
            )[0]
        return states[0]

    @property
    def has_reference(self) -> bool:
        """True when `reference` can be entered."""
        return self.peft_model is not None or self._frozen_copy is not None

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within it the policy is the one that training started from, without gradients.

        With LoRA the same weights with the adapter off; with full weights a frozen copy.
        """
        if not self.has_reference:
            raise ConfigurationError(
                "this policy keeps no reference: set kl_coefficient or kl_sample_rows above 0"
            )
        try:
            self._set_reference(True)
            with torch.no_grad():
                yield
        finally:
            self._set_reference(False)

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the computing weights up to date with the trainable parameters."""
        if self.peft_model is not None:
            for _, layer in self._adapted_layers():
                layer.refresh()
        elif self.dtype is not torch.float32:
            parameters = dict(self.model.named_parameters())
            for name, master in self._masters.items():
                parameters[name].copy_(round_weights(master, self.dtype))

    def train_mode(self, training: bool) -> None:
        """Switch the adapter's dropout on or off; nothing else in the model knows training."""
        if self.peft_model is not None:
            for _, layer in self._adapted_layers():
                layer.train(training)

    # --- what leaves it --------------------------------------------------------------------------

    def named_merged_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What training has changed, by the plain model's parameter names, in the computing dtype:
        what `engine.update_weights` takes. The tensors are the policy's own: copy to keep them.
        """
        if self.peft_model is not None:
            for name, layer in self._adapted_layers():
                assert layer.merged_weight is not None  # refresh() ran in __init__
                yield f"{name}.weight", layer.merged_weight
        else:
            yield from ((name, value.detach()) for name, value in self.model.named_parameters())

    def save(self, folder: Path | str) -> None:
        """Write the adapter (PEFT's format) or the whole model (transformers' format)."""
        (self.peft_model if self.peft_model is not None else self.model).save_pretrained(folder)

    @torch.no_grad()
    def load_trainable(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put back what `trainable` held; names and shapes must be the same."""
        for name, parameter in self.trainable.items():
            parameter.copy_(tensors[name])
        self.refresh()

    def placed(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole tensors, named by parameter, in the form in which `trainable` is kept."""
        return dict(tensors)

    def idle_pass(self) -> None:
        """Where `reduces_gradients`: take part in a pass of the others, and add nothing to it."""

    # --- inside ----------------------------------------------------------------------------------

    @property
    def _computing_model(self) -> PreTrainedModel:
        if self._use_frozen_copy and self._frozen_copy is not None:
            return self._frozen_copy
        model: PreTrainedModel = self.model
        return model

    def _set_reference(self, active: bool) -> None:
        if self.peft_model is None:
            self._use_frozen_copy = active
            return
        for _, layer in self._adapted_layers():
            layer.use_base = active

    def _adapted_layers(self) -> Iterator[tuple[str, MergedLoraLinear]]:
        for name, module in self.model.named_modules():
            if isinstance(module, MergedLoraLinear):
                yield name, module

    def _add_adapter(self, config: TrainingConfig) -> dict[str, torch.nn.Parameter]:
        lora = LoraConfig(
            r=config.lora_r,
            lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=config.lora_dropout,
            target_modules=config.lora_target_modules,
            task_type="CAUSAL_LM",
        )
        lora._register_custom_module({torch.nn.Linear: MergedLoraLinear, Conv1D: MergedLoraLinear})
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT reads an attribute that transformers has renamed; nothing a user could do
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            torch.manual_seed(config.seed)
            try:
                self.peft_model = get_peft_model(self.model, lora)
            except ValueError as error:
                linear = {
                    name.rsplit(".", 1)[-1]
                    for name, module in self.model.named_modules()
                    if isinstance(module, torch.nn.Linear | Conv1D)
                }
                raise ConfigurationError(
                    f"lora_target_modules={config.lora_target_modules!r} cannot be adapted in a "
                    f"{type(self.model).__name__}: choose from {sorted(linear)} or "
                    f'"all-linear" ({error})'
                ) from error
        return {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }

    def _make_masters(self) -> dict[str, torch.nn.Parameter]:
        """Float32 master weights. A bfloat16 model's gradients are added to them in float32 as
        soon as a micro-batch has them, so accumulation does not round.
        """
        self.model.requires_grad_(True)
        if self.dtype is torch.float32:
            return dict(self.model.named_parameters())
        for name, parameter in self.model.named_parameters():
            master = torch.nn.Parameter(parameter.detach().to(torch.float32))
            self._masters[name] = master

            def hand_over(computing: torch.Tensor, master: torch.nn.Parameter = master) -> None:
                gradient = computing.grad
                assert gradient is not None  # the hook runs when it has just been accumulated
                if master.grad is None:
                    master.grad = gradient.to(torch.float32)
                else:
                    master.grad.add_(gradient)
                computing.grad = None

            parameter.register_post_accumulate_grad_hook(hand_over)
        return dict(self._masters)

    @torch.no_grad()
    def _longest_packed_row(self) -> int:
        """Rows are packed on a processor, and if every layer's attention can be replaced. A GPU has
        better kernels for rows side by side.
        """
        if self.device.type != "cpu" or not self.model._supports_attention_backend:
            return 0
        probe = PackProbe()
        token = torch.zeros(1, 1, dtype=torch.int64)
        with packed_attention(self.model):
            self.model.base_model(
                input_ids=token, position_ids=token, use_cache=False, row_pack=probe
            )
        every_layer = probe.layers == self.model.config.num_hidden_layers
        return probe.window if every_layer and not probe.unsupported else 0

    @torch.no_grad()
    def _check_head(self) -> None:
        """Log-probs are computed from hidden states times the head, in chunks: make sure that this
        is all the model does (a few cap or scale their logits).
        """
        size = min(8, self.model.get_input_embeddings().weight.shape[0])
        ids = torch.arange(size, device=self.model.device)[None]
        expected = self.model(input_ids=ids, use_cache=False).logits
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        if not torch.allclose(hidden @ self.head_weight.t(), expected, rtol=0.05, atol=0.05):
            raise ConfigurationError(
                f"{type(self.model).__name__} changes its logits after the output layer (a bias, "
                "a cap or a scale), which training does not reproduce: use another model"
            )


def _dtype_of(config: TrainingConfig) -> torch.dtype:
    if config.fp16:
        return torch.float16
    return torch.bfloat16 if config.bf16 else torch.float32
