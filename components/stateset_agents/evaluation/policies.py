"""Loading a policy to evaluate: a whole model's folder, or an adapter on the base model.

Owns what the folder of a policy may hold. It does not know where a folder came from: the task
fetches the champion from the registry.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateset_agents.core.agent import (
    AgentConfig,
    GenerationSettings,
    MultiTurnAgent,
    make_engine,
)
from stateset_agents.exceptions import ModelSourceError
from stateset_agents.inference.loading import load_model
from stateset_agents.tracking.merging import is_adapter, merge_adapter
from stateset_agents.tracking.policy_folder import PolicyFolder
from stateset_agents.tracking.registry import generation_settings

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


async def load_agent(
    policy: PolicyFolder,
    *,
    base_model: Path | None = None,
    fallback: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    own_thread: bool = False,
) -> MultiTurnAgent:
    """An agent that speaks with the weights of a policy's folder.

    It speaks as the folder says it was trained (or registered) to; where the folder says nothing,
    as `fallback` does.

    Args:
        policy: what `read_policy_folder` gave.
        base_model: of an adapter, instead of the one that the folder names.
        fallback: settings of `AgentConfig` for a folder that has none of its own.
        overrides: settings that win over both.
        own_thread: of the engine, for a process that answers others meanwhile.

    Raises:
        ModelSourceError: the weights cannot be loaded, or an adapter's base model is not there.
        RegistryError: the adapter does not belong to its base model.
        ConfigurationError: settings that cannot be.
    """
    own = generation_settings(policy.folder) or policy.agent or dict(fallback or {})
    # a folder that a later release wrote may know more settings than this one
    spoken = {key: value for key, value in own.items() if key in GenerationSettings.model_fields}
    spoken |= overrides or {}
    if policy.kind == "stub":
        responses = policy.described.get("stub_responses")
        spoken |= {"use_stub_model": True, "stub_responses": responses}
        agent = MultiTurnAgent(AgentConfig(**{**spoken, "model_name": "stub://checkpoint"}))
        await agent.initialize()
        return agent
    with tempfile.TemporaryDirectory(prefix="stateset-policy-") as temporary:
        folder = policy.folder
        if policy.kind == "adapter":
            folder = Path(temporary) / "merged"
            merge_adapter(policy.folder, policy.base(base_model), folder)
        config = AgentConfig(**{**spoken, "model_name": str(folder)})
        return MultiTurnAgent(config, make_engine(config, own_thread=own_thread))
