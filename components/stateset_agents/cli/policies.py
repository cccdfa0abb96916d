"""Opening the policy that a command was given. Owns what is said about a stub's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateset_agents.cli.console import notice

if TYPE_CHECKING:
    import asyncio

    from stateset_agents.core.agent import MultiTurnAgent
    from stateset_agents.run_config import RunConfig


def open_checkpoint(
    runner: asyncio.Runner,
    checkpoint: Path,
    settings: RunConfig,
    base_model: Path | None,
    overrides: Mapping[str, Any],
) -> MultiTurnAgent:
    """An agent that speaks as the checkpoint does; where its folder does not say how, as the
    section `agent` says.

    Raises:
        ModelSourceError: the folder is no policy's, or cannot be loaded.
        RegistryError: an adapter that does not belong to its base model.
    """
    from stateset_agents.evaluation.policies import load_agent
    from stateset_agents.tracking.policy_folder import read_policy_folder

    policy = read_policy_folder(checkpoint)
    if policy.kind == "stub":
        notice(f"stub: {checkpoint} is of a run without a model; its answers are fixed")
    return runner.run(
        load_agent(
            policy,
            base_model=base_model,
            fallback=settings.agent.model_dump(),
            overrides=overrides,
        )
    )
