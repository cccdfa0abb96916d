"""`stateset-agents chat`: talk with a checkpoint, or with the version in service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stateset_agents.cli.console import (
    BaseModelOption,
    ConfigOption,
    MaxNewTokensOption,
    SeedOption,
    TemperatureOption,
    load_config,
    notice,
    sampling_overrides,
    set_up_logging,
)
from stateset_agents.cli.conversation import converse
from stateset_agents.cli.policies import open_checkpoint

if TYPE_CHECKING:
    from stateset_agents.run_config import RunConfig


def chat(
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A policy's folder; default: the version in service in the registry."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Append the conversation to this .jsonl file, as OpenAI messages."),
    ] = None,
    config: ConfigOption = None,
    base_model: BaseModelOption = None,
    temperature: TemperatureOption = None,
    max_new_tokens: MaxNewTokensOption = None,
    seed: SeedOption = None,
) -> None:
    """Talk with a policy, line by line; what was said before is remembered until /reset."""
    import asyncio
    import tempfile

    settings = load_config(config)
    set_up_logging()
    overrides = sampling_overrides(temperature, max_new_tokens, seed)
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory(prefix="stateset-chat-") as work:
        folder = checkpoint or _version_in_service(settings, Path(work))
        agent = open_checkpoint(runner, folder, settings, base_model, overrides)
        try:
            history = converse(runner, agent)
        finally:
            runner.run(agent.engine.aclose())
    if save is not None and history:
        save.parent.mkdir(parents=True, exist_ok=True)
        with save.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": history}, ensure_ascii=False) + "\n")
        notice(f"appended to {save}")


def _version_in_service(settings: RunConfig, work: Path) -> Path:
    from stateset_agents.exceptions import ServingError
    from stateset_agents.tracking.registry import (
        champion_address,
        champion_version,
        download_version,
    )

    name = settings.tracking.registered_model
    if champion_version(settings.tracking) is None:
        raise ServingError(
            f"no version of {name!r} is in service yet; run `make retrain`, or name a folder: "
            "stateset-agents chat --checkpoint FOLDER"
        )
    download_version(settings.tracking, champion_address(settings.tracking), work / "model")
    return work / "model"
