"""Loading a policy to evaluate: a whole model's folder, or an adapter on the base model.

Owns what the folder of a policy may hold. It does not know where a folder came from: the task
fetches the champion from the registry.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from stateset_agents.exceptions import ModelSourceError
from stateset_agents.inference.loading import load_model
from stateset_agents.tracking.merging import is_adapter, merge_adapter

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from stateset_agents.inference.loading import DtypeName


def load_policy_model(
    folder: Path | str,
    base_folder: Path | str,
    *,
    dtype: DtypeName | torch.dtype = "auto",
    device: str = "cpu",
) -> PreTrainedModel:
    """Load a policy's weights as one plain model; an adapter is merged into the base first.

    It is merged as registration merges it, so what is evaluated is what would be served. The base
    that an adapter's own file names is not used: that path is of the machine that trained it.

    Args:
        folder: `adapter_config.json` with `adapter_model.safetensors`, or a whole model.
        base_folder: the base model; not read for a whole model.
        dtype: of the weights, as in `load_model`.
        device: where they go.

    Raises:
        ModelSourceError: a folder that is neither.
        RegistryError: an adapter that is not plain LoRA, or does not belong to the base.
    """
    folder, base_folder = Path(folder), Path(base_folder)
    if not is_adapter(folder):
        return load_model(folder, dtype=dtype, device=device)
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelSourceError(
            f"{folder} has adapter_config.json but no adapter_model.safetensors; train the policy "
            "again, or fetch the version again"
        )
    with tempfile.TemporaryDirectory(prefix="stateset-policy-") as temporary:
        merged = Path(temporary) / "merged"
        merge_adapter(folder, base_folder, merged)
        return load_model(merged, dtype=dtype, device=device)
