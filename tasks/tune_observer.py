"""What the step `tune` keeps of each trial: an MLflow run below the study's, and a line in a file
as it begins and ends, which the flow makes Prefect runs of.

Owns both. It works in the process that runs the trial, and does not know what a trial does.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.loggers import MlflowLogger
from stateset_agents.tracking.mlflow_run import TrackedRun, read_link, start_run
from stateset_agents.training.hpo.search import StartedTrial
from stateset_agents.training.hpo.summary import TrialRecord
from tasks import paths

STEPS_SENT_TOGETHER = 8


@dataclass(frozen=True)
class TrialsOnRecord:
    """An `hpo.search.Observer`.

    Attributes:
        tracking: where runs are kept.
        parent_run_id: the study's run.
        events: the file of lines.
        folder: of this study's links to its trials' runs, so that a trial that is taken up again
            goes on with its run.
    """

    tracking: TrackingConfig
    parent_run_id: str
    folder: Path
    events: Path = paths.TUNE_EVENTS

    @contextlib.contextmanager
    def trial(self, started: StartedTrial) -> Iterator[_TrialOnRecord]:
        """The trial's run, open while it runs."""
        name = f"{started.phase}-{started.number}"
        link = self.folder / f"{name}.json"
        with start_run(
            self.tracking,
            started.label,
            {"study": self.folder.name, "phase": started.phase, "trial": str(started.number)},
            params=started.params,
            resume_run_id=read_link(link),
            parent_run_id=self.parent_run_id,
        ) as tracked:
            tracked.write_link(link)
            tell(
                self.events,
                "begin",
                study=self.folder.name,
                name=name,
                label=started.label,
                params=started.params,
                mlflow_run=tracked.run_id,
            )
            log = _TrialOnRecord(
                name, tracked, tracked.metric_logger(every=STEPS_SENT_TOGETHER), self.events
            )
            try:
                yield log
            finally:
                log.logger.close()
                if not log.has_ended:
                    tell(self.events, "end", name=name, state="crashed", measures={}, reason="")


@dataclass
class _TrialOnRecord:
    name: str
    tracked: TrackedRun
    logger: MlflowLogger
    events: Path
    has_ended: bool = False

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """After an optimizer batch."""
        self.logger.log(step, metrics)

    def end(self, record: TrialRecord) -> None:
        """When the trial has ended."""
        self.has_ended = True
        self.tracked.log_metrics({f"final/{name}": v for name, v in record.measures.items()})
        self.tracked.set_tags({"state": record.state, "reason": record.reason})
        tell(
            self.events,
            "end",
            name=self.name,
            state=record.state,
            measures=record.measures,
            reason=record.reason,
        )


def tell(events: Path, event: str, **values: Any) -> None:
    """One more line; written in one go, so that lines of several processes stay whole."""
    events.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"event": event, **values}, default=str) + "\n"
    with events.open("ab", buffering=0) as file:
        file.write(line.encode())
