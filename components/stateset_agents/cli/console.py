"""What several commands have in common: options, the configuration, notices, JSON.

Owns where results and notices go: results to standard output (JSON with `--json`), all else to
standard error, so that a script can read the one without the other.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stateset_agents import debug
from stateset_agents.exceptions import ConfigurationError

if TYPE_CHECKING:
    from stateset_agents.run_config import RunConfig

DEFAULT_CONFIGS = (Path("params.yaml"), Path("config.yaml"))
BASE_MODEL = Path("data/base_model")  # where the line puts it
REWARD_MODEL = Path("data/reward_model")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="A file in the form of params.yaml; default: params.yaml or config.yaml, if there.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Write one JSON document to standard output.")
]
BaseModelOption = Annotated[
    Path | None,
    typer.Option("--base-model", help="Base model of an adapter; default: the one it names."),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option("--temperature", min=0.0, help="Of sampling; default: the checkpoint's."),
]
MaxNewTokensOption = Annotated[
    int | None,
    typer.Option("--max-new-tokens", min=1, help="Of one answer; default: the checkpoint's."),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, help="The same seed gives the same answer.")
]


def find_config(given: Path | None) -> Path | None:
    """The file that `--config` names, or the first of the usual ones that is there."""
    return given or next((path for path in DEFAULT_CONFIGS if path.is_file()), None)


def load_config(given: Path | None, *, is_needed: bool = False) -> RunConfig:
    """The settings of `--config`; without a file the defaults, unless one `is_needed`.

    Raises:
        ConfigurationError: the file cannot be used; every problem is a line.
    """
    from stateset_agents import run_config

    path = find_config(given)
    if path is not None:
        return run_config.load(path)
    if is_needed:
        raise ConfigurationError(
            "no configuration: give --config FILE, or write one with "
            "`stateset-agents init --path config.yaml`"
        )
    return run_config.RunConfig()


def set_up_logging() -> None:
    """Warnings of everybody and information of this project on standard error; all of it with
    STATESET_DEBUG=1.
    """
    is_debugging = debug.is_on()
    logging.basicConfig(
        level=logging.DEBUG if is_debugging else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s" if is_debugging else "%(message)s",
        stream=sys.stderr,
    )
    own = logging.getLogger("stateset_agents")
    own.setLevel(logging.DEBUG if is_debugging else logging.INFO)
    for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "DO_NOT_TRACK"):
        os.environ.setdefault(name, "1")


def notice(text: str) -> None:
    """A line for the person, on standard error."""
    sys.stdout.flush()
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def print_json(value: Any) -> None:
    """One document on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def sampling_overrides(
    temperature: float | None, max_new_tokens: int | None, seed: int | None
) -> dict[str, Any]:
    """What was asked for on the command line, as settings of an agent."""
    asked = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
    return {name: value for name, value in asked.items() if value is not None}
