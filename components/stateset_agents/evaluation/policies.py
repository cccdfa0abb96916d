"""Loading a policy to evaluate: a whole model's folder, or an adapter on the base model.

Owns what the folder of a policy may hold. It does not know where a folder came from: the task
fetches the champion from the registry.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stateset_agents.exceptions import ModelSourceError
from stateset_agents.inference.loading import load_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from stateset_agents.inference.loading import DtypeName

ADAPTER_CONFIG = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """True when the folder holds a PEFT adapter rather than a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def load_policy_model(
    folder: Path | str,
    base_folder: Path | str,
    *,
    dtype: DtypeName | torch.dtype = "auto",
    device: str = "cpu",
) -> PreTrainedModel:
    """Load a policy's weights into one plain model; an adapter is merged into the base.

    The base that an adapter's own file names is not used: that path is of the machine that trained
    it. Merging adds the adapter's product, computed in float32, to the base's weights once, so that
    generation costs what the base's costs.

    Args:
        folder: `adapter_config.json` with `adapter_model.safetensors`, or a whole model.
        base_folder: the base model; not read for a whole model.
        dtype: of the weights, as in `load_model`.
        device: where they go.

    Raises:
        ModelSourceError: a folder that is neither, or an adapter that does not fit the base.
    """
    folder = Path(folder)
    if not is_adapter(folder):
        return load_model(folder, dtype=dtype, device=device)
    from peft import PeftModel

    base = load_model(base_folder, dtype=dtype, device=device)
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelSourceError(
            f"{folder} has {ADAPTER_CONFIG} but no adapter_model.safetensors; train the policy "
            "again, or fetch the version again"
        )
    try:
        merged = PeftModel.from_pretrained(base, str(folder)).merge_and_unload(safe_merge=True)
    except Exception as error:  # whatever an adapter of another model provokes: attribute it
        raise ModelSourceError(
            f"the adapter in {folder} does not fit the base model in {base_folder}: {error}. Use "
            "the base model that it was trained on, or train the policy again"
        ) from error
    model: PreTrainedModel = merged.eval()
    return model
