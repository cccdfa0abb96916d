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
    model: Annotated[
        str | None,
        typer.Option(help="A version of the registry: models:/NAME@ALIAS or models:/NAME/VERSION."),
    ] = None,
    follow: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds between two looks at the alias, whose new version takes over without a "
            "restart; 0 = never; default: serve.follow_seconds.",
        ),
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
    """Answer OpenAI chat requests with a version or a checkpoint, until Ctrl-C or SIGTERM."""
    if model is not None and checkpoint is not None:
        raise typer.BadParameter("give --checkpoint or --model, not both")
    if follow and (checkpoint is not None or (model is not None and "@" not in model)):
        raise typer.BadParameter(
            "--follow needs what can move: --model models:/NAME@ALIAS, or neither --model nor "
            "--checkpoint, for the version in service"
        )
    from stateset_agents.serving import serve as serve_until_stopped

    settings = load_config(config)
    if host is not None:
        settings.serve.host = host
    if port is not None:
        settings.serve.port = port
    if follow is not None:
        settings.serve.follow_seconds = follow
    set_up_logging()
    serve_until_stopped(
        settings.serve,
        settings.tracking,
        reference=model,
        folder=checkpoint,
        base_model=base_model,
        generation=settings.agent.model_dump(mode="json"),
        api_key=api_key,
    )
