"""Step: bring the base model named in params.yaml to data/base_model.

Reads the section `base_model`; writes a folder with config, safetensors, tokenizer and
model_source.json.
"""

from __future__ import annotations

from stateset_agents.run_config import RunConfig
from stateset_agents.tracking.model_sources import fetch_model
from tasks import entry, paths


def run(config: RunConfig) -> None:
    """Fetch, verify and put in place; data/base_model is whole or not there."""
    fetch_model(
        config.base_model.source,
        paths.BASE_MODEL,
        dtype=config.base_model.dtype,
        tracking=config.tracking,
    )


if __name__ == "__main__":
    entry.main(run)
