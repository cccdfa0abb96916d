"""A language model's body cut in two: a frozen lower part and a trained upper part.

Owns the cut. Families whose bodies are `embed_tokens`, `layers`, `norm` and `rotary_emb` (Llama,
SmolLM, Qwen, Mistral and their like) are run in two passes, so that the lower part's output can be
kept; any other body runs whole each time with its lower layers frozen, which is slower and gives
the same.

Notation: T tokens of a pack, H hidden size.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from stateset_agents.exceptions import ConfigurationError
from stateset_agents.rewards.prefix_tree import Pack
from stateset_agents.training.reward_model_config import RewardModelConfig

_PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")


def keep_layers(body: Any, count: int) -> None:
    """Drop a body's layers above the first `count`; 0 keeps all.

    Raises:
        ConfigurationError: the body has fewer.
    """
    layers, name = _layers(body)
    if count > len(layers):
        raise ConfigurationError(
            f"reward_model.base_layers is {count}, and the base model has {len(layers)} layers; "
            "give 0 for all of them, or fewer"
        )
    if 0 < count < len(layers):
        setattr(body, name, layers[:count])
        _set_layer_count(body.config, slice(0, count))


def trained_layer_count(body: Any, config: RewardModelConfig) -> int:
    """`trained_layers` as it was set; the default, which nobody chose for this model, is no more
    than the model has.
    """
    if "trained_layers" in config.model_fields_set:
        return config.trained_layers
    return min(config.trained_layers, len(_layers(body)[0]))


class SplitBody:
    """A body of which the top layers and the final norm are trained.

    While it trains, the trained part has float32 master weights of its own and computes in the
    body's number format; `merge` writes them back into the body.

    Args:
        body: a transformers model without a language-model head, in eval mode.
        trained_layers: how many, counted from the top; 0 trains the final norm alone.

    Raises:
        ConfigurationError: the body has fewer layers.
    """

    def __init__(self, body: Any, trained_layers: int) -> None:
        layers, self._layers_name = _layers(body)
        if trained_layers > len(layers):
            raise ConfigurationError(
                f"reward_model.trained_layers is {trained_layers}, and {len(layers)} layers are "
                "used; give fewer"
            )
        self._body = body
        self._cut = len(layers) - trained_layers
        self._dtype: torch.dtype = body.dtype
        self._device: torch.device = body.device
        self._lower: Any = None
        body.requires_grad_(False)
        if all(hasattr(body, part) for part in _PARTS):
            self._lower = _part(body, slice(0, self._cut))
            self._lower.embed_tokens = body.embed_tokens
            self._lower.norm = nn.Identity()
            self._upper = _part(body, slice(self._cut, len(layers)))
            self._upper.embed_tokens = nn.Identity()
            self._upper.layers = copy.deepcopy(self._upper.layers).float()
            self._upper.norm = copy.deepcopy(body.norm).float()
            self._upper.requires_grad_(True)
        else:
            self._upper = body.float()
            for layer in layers[self._cut :]:
                layer.requires_grad_(True)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Those that are trained, float32."""
        return [parameter for parameter in self._upper.parameters() if parameter.requires_grad]

    def autocast(self, enabled: bool = True) -> AbstractContextManager[None]:
        """Compute in the body's number format with float32 weights."""
        reduced = enabled and self._dtype != torch.float32
        return torch.autocast(self._device.type, self._dtype, reduced)

    @torch.no_grad()
    def frozen(self, pack: Pack) -> torch.Tensor | None:
        """The lower part's output `(1, T, H)`, or None where the body is not cut."""
        if self._lower is None:
            return None
        hidden: torch.Tensor = self._lower(
            input_ids=pack.token_ids[None].to(self._device), **self._layout(pack)
        ).last_hidden_state
        return hidden

    def trained(self, pack: Pack, hidden: torch.Tensor | None) -> torch.Tensor:
        """The upper part's output `(T, H)` from what `frozen` gave."""
        if hidden is None:
            given = {"input_ids": pack.token_ids[None].to(self._device)}
        else:
            given = {"inputs_embeds": hidden}
        output: torch.Tensor = self._upper(**given, **self._layout(pack)).last_hidden_state[0]
        return output

    def _layout(self, pack: Pack) -> dict[str, Any]:
        return {
            "position_ids": pack.positions[None].to(self._device),
            "attention_mask": pack.attention_mask().to(self._device),
            "use_cache": False,
        }

    @torch.no_grad()
    def merge(self) -> None:
        """Write the trained weights into the body, in its number format; from now on `trained`
        computes with these.
        """
        if self._lower is not None:
            self._upper.to(self._dtype)
            layers, _ = _layers(self._body)
            for target, source in zip(layers[self._cut :], self._upper.layers, strict=True):
                target.load_state_dict(source.state_dict())
            self._body.norm.load_state_dict(self._upper.norm.state_dict())
        self._body.to(self._dtype)
        self._upper.requires_grad_(False)


def _layers(body: nn.Module) -> tuple[nn.ModuleList, str]:
    found = [
        (part, name) for name, part in body.named_children() if isinstance(part, nn.ModuleList)
    ]
    if not found:
        raise ConfigurationError(
            f"{type(body).__name__} has no list of layers; a reward model needs a base model that "
            "is a stack of transformer layers"
        )
    return max(found, key=lambda one: len(one[0]))


def _part(body: Any, where: slice) -> Any:
    """A body of the same class that runs some of the layers, sharing their modules."""
    config = copy.deepcopy(body.config)
    _set_layer_count(config, where)
    with torch.device("meta"):
        part = type(body)(config)
    part.layers = body.layers[where]
    part.rotary_emb = body.rotary_emb
    return part.eval()


def _set_layer_count(config: Any, where: slice) -> None:
    count = len(range(*where.indices(config.num_hidden_layers)))
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[where]
    config.num_hidden_layers = count
