"""`stateset-agents init`: a configuration to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stateset_agents.cli.console import DEFAULT_CONFIGS


def init(
    path: Annotated[Path, typer.Option(help="The file to write.")] = DEFAULT_CONFIGS[0],
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
) -> None:
    """Write a starter configuration: every parameter with its meaning, ready to train."""
    from stateset_agents.run_config import write_starter

    write_starter(path, replace=force)
    print(f"wrote {path}: every parameter with its meaning")
    print(f"try it without a model: stateset-agents train --config {path} --stub")
