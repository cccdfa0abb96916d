"""Step: put the registered version into service if it is better than the one that is there.

Reads data/registration.json and the evaluation's metrics; moves the alias `champion` in the
registry, or does not; writes data/promotion.json: {promoted, version, champion, previous, reasons,
gates}. A refusal is a result: the step succeeds.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

from stateset_agents.exceptions import PipelineError
from stateset_agents.run_config import RunConfig
from stateset_agents.tracking.lineage import fingerprint
from stateset_agents.tracking.promotion import promote
from tasks import entry, paths
from tasks.register_model import FIGURES, read_figures, read_result, write_result


def run(config: RunConfig) -> None:
    """Hold the gates, move the alias or not, write down which and why."""
    registration = read_result(paths.REGISTRATION, "register_model")
    if registration["model_name"] != config.tracking.registered_model:
        raise PipelineError(
            f"{paths.REGISTRATION} is about {registration['model_name']!r}, and params.yaml names "
            f"{config.tracking.registered_model!r} (tracking.registered_model): register again"
        )
    figures = read_figures()
    if registration["evaluation_sha256"] != fingerprint(FIGURES):
        raise PipelineError(
            f"{FIGURES} is not the evaluation of version {registration['version']}, which "
            f"{paths.REGISTRATION} names: another policy was evaluated since, register it first"
        )
    outcome = promote(config.tracking, config.promote, registration["version"], figures)
    write_result(paths.PROMOTION, asdict(outcome))
    verb = "promoted" if outcome.promoted else "not promoted"
    sys.stdout.write(f"version {outcome.version} {verb}\n")
    for reason in outcome.reasons:
        sys.stdout.write(f"  - {reason}\n")


if __name__ == "__main__":
    entry.main(run)
