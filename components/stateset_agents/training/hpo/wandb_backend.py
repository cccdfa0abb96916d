"""Trials as Weights & Biases runs: the backend `wandb`.

Owns what a run there is told. Parameters are chosen here, as for every backend, because a W&B sweep
chooses them on W&B's server and has no offline form; what works offline are runs, so each trial is
one, in the study's group. With WANDB_MODE=offline they are files below ./wandb until `wandb sync`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stateset_agents.training.hpo.search import StartedTrial
from stateset_agents.training.hpo.summary import TrialRecord


@dataclass(frozen=True)
class WandbRuns:
    """An `hpo.search.Observer`: a run for each trial. Its project is W&B's own setting,
    WANDB_PROJECT.

    Attributes:
        group: the study's name.
    """

    group: str

    @contextlib.contextmanager
    def trial(self, started: StartedTrial) -> Iterator[_WandbRun]:
        """The trial's run, open while it runs."""
        import wandb

        run = wandb.init(
            group=self.group,
            name=started.label,
            job_type=started.phase,
            config=dict(started.params),
            reinit="create_new",
        )
        code = 1
        try:
            yield _WandbRun(run)
            code = 0
        finally:
            run.finish(exit_code=code)


@dataclass(frozen=True)
class _WandbRun:
    run: Any

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """After an optimizer batch."""
        self.run.log(dict(metrics), step=step)

    def end(self, record: TrialRecord) -> None:
        """When the trial has ended."""
        self.run.summary.update(
            {**{f"final/{name}": v for name, v in record.measures.items()}, "state": record.state}
        )
