"""`stateset-agents doctor`: is this machine enough, and is everything installed?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from stateset_agents.cli.console import ConfigOption, JsonOption, load_config, print_json
from stateset_agents.cli.exit_codes import ExitCode


def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check Python, dependencies, GPU, memory for the configured model, disk and ports."""
    from stateset_agents.cli.inputs import known_base_model
    from stateset_agents.doctor import Verdict, examine

    checks = []
    settings = load_config(config)
    for check in examine(Path.cwd(), known_base_model(settings), settings.train):
        if not as_json:
            print(check, flush=True)
        checks.append(check)
    problems = sum(check.verdict is Verdict.PROBLEM for check in checks)
    if as_json:
        print_json({"ready": not problems, "checks": [asdict(check) for check in checks]})
    else:
        print(f"{problems} problems" if problems else "ready")
    if problems:
        raise typer.Exit(ExitCode.FAILED)
