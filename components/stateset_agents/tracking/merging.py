"""A low-rank adapter and its base model, merged into one model folder.

Owns the arithmetic W' = W + (alpha / r) B A (Hu et al. 2021, arXiv:2106.09685) on safetensors
files, one weight at a time, in float32, rounded once to the format of W: the same bits as in
training, where the policy samples from merged weights, so what was evaluated is what is registered
and served. It does not load a model. Adapters of other kinds are refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateset_agents.exceptions import RegistryError
from stateset_agents.tracking.model_files import weight_files

if TYPE_CHECKING:
    import torch

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "chat_template*", "vocab*", "merges*")


def is_adapter(folder: Path) -> bool:
    """True for a folder that PEFT wrote, which is of no use without its base model."""
    return (folder / ADAPTER_CONFIG).is_file()


def merge_adapter(adapter: Path, base: Path, target: Path) -> None:
    """Write base and adapter as one model to the new folder `target`; the tokenizer is the
    adapter's, if it has one.

    Raises:
        RegistryError: the adapter is not plain LoRA, does not belong to this base, or is damaged.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file, save_file

    scale, transposed = _read_config(adapter)
    try:
        lora = load_file(adapter / _ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise RegistryError(
            f"{adapter / _ADAPTER_WEIGHTS} cannot be read: {error}; train the policy again"
        ) from error
    pairs = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): (
            tensor,
            lora[name.replace(".lora_A.", ".lora_B.")],
        )
        for name, tensor in lora.items()
        if name.endswith(".lora_A.weight")
    }
    merged: set[str] = set()
    shutil.copytree(base, target, ignore=shutil.ignore_patterns("*.safetensors"))
    for file_name in weight_files(base, source=str(base)):
        with safe_open(base / file_name, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {"format": "pt"}
        for module, (down, up) in pairs.items():
            # some hub files leave out the outermost module's name
            key = next((k for k in tensors if f".{module}.weight".endswith(f".{k}")), None)
            if key is None:
                continue
            wanted = (up.shape[0], down.shape[1])
            found = tuple(tensors[key].shape)
            if found != (wanted[::-1] if transposed else wanted):
                raise RegistryError(
                    f"{adapter}: the adapter does not belong to {base}: it changes {key} of shape "
                    f"{wanted}, which is {found} there; give the model that it was trained on"
                )
            tensors[key] = _merge(tensors[key], down, up, scale, transposed)
            merged.add(module)
        save_file(tensors, target / file_name, metadata=metadata)
    if missing := sorted(set(pairs) - merged):
        raise RegistryError(
            f"{adapter}: the adapter does not belong to {base}: it changes {missing[0]} (and "
            f"{len(missing) - 1} more), which that model does not have"
        )
    for pattern in _TOKENIZER_FILES:
        for path in adapter.glob(pattern):
            shutil.copyfile(path, target / path.name)


def _merge(
    weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float, transposed: bool
) -> torch.Tensor:
    """`weight` (O, I) or, transposed, (I, O); `down` (R, I), `up` (O, R)."""
    from stateset_agents.inference.rounding import round_weights

    delta = (up.float() @ down.float()) * scale
    if transposed:
        delta = delta.t()
    return round_weights(weight.float() + delta, weight.dtype).contiguous()


def _read_config(adapter: Path) -> tuple[float, bool]:
    config: dict[str, Any] = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    unusual = [
        name
        for name in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias")
        if config.get(name)
    ]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        unusual.append(f"peft_type {config.get('peft_type')}, bias {config.get('bias')}")
    if unusual:
        raise RegistryError(
            f"{adapter}: only plain LoRA adapters are merged, and this one has "
            f"{', '.join(unusual)}; save the merged model instead"
        )
    rank = float(config["r"])
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    return scale, bool(config.get("fan_in_fan_out"))
