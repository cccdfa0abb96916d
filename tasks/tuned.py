"""What the step `tune` found, as settings: data/tuned.yaml laid over params.yaml.

Owns that file. It does not know how parameters are searched for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from stateset_agents.exceptions import DataError, PipelineError
from stateset_agents.run_config import RunConfig, lay_over, read_tuned
from tasks import paths
from tasks.folders import naming

HEADER = "# Written by the step tune: what it found, laid over params.yaml by the steps after it.\n"


def write_tuned(agent: Mapping[str, Any], train: Mapping[str, Any], why: str) -> None:
    """Write what is laid over `agent` and `train`; both are empty where nothing better was found.

    The file is the old one or the new one, never half of it.
    """
    text = HEADER + yaml.safe_dump(
        {"agent": dict(agent), "train": dict(train), "why": why}, sort_keys=False, width=100
    )
    temporary = paths.TUNED.with_name(f".{paths.TUNED.name}.tmp")
    try:
        with naming(paths.TUNED):
            temporary.write_text(text, encoding="utf-8")
        temporary.replace(paths.TUNED)
    finally:
        temporary.unlink(missing_ok=True)


def with_tuned(config: RunConfig) -> RunConfig:
    """The settings with what was found, if anything was; `config` stays as it is.

    Raises:
        PipelineError: the file is damaged.
        ConfigurationError: what was found does not go with the rest of params.yaml.
    """
    if not paths.TUNED.is_file():
        return config
    try:
        found = read_tuned(paths.TUNED)
    except DataError as error:
        raise PipelineError(
            f"{error}; run the step tune again: dvc repro --single-item --force tune"
        ) from error
    return lay_over(config, found)
