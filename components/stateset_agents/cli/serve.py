"""`stateset-agents serve`: answer OpenAI chat requests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stateset_agents.cli.console import (
    BaseModelOption,
    ConfigOption,
    load_config,
    set_up_logging,
)


def serve(
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A policy's folder; default: the version in service in the registry."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 = a free one; default: serve.port.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Default: serve.host.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="STATESET_API_KEY",
            show_envvar=True,
            help="Clients must send it as a bearer token; default: everyone may ask.",
        ),
    ] = None,
    config: ConfigOption = None,
    base_model: BaseModelOption = None,
) -> None:
    """Answer OpenAI chat requests with a checkpoint, until Ctrl-C or SIGTERM."""
    from stateset_agents.serving import serve as serve_until_stopped

    settings = load_config(config)
    if host is not None:
        settings.serve.host = host
    if port is not None:
        settings.serve.port = port
    set_up_logging()
    serve_until_stopped(
        settings.serve,
        settings.tracking,
        folder=checkpoint,
        base_model=base_model,
        generation=settings.agent.model_dump(mode="json"),
        api_key=api_key,
    )
