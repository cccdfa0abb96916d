"""Help with the search of the step tune, from another process or another machine.

    python -m tasks.tune_worker [--storage postgresql://... --study NAME]

Needs a checkout with the same params.yaml and the step's inputs (`dvc pull`). The study and its
storage are those of params.yaml unless said otherwise; a study that nobody has begun, or one of
other settings or data, is refused. Each trial is an MLflow run below the study's, as in the step.
The worker ends when it has had nothing to do for a while; killed, its trial is taken up by others.
Not a step of dvc.yaml: it writes nothing that DVC knows.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stateset_agents import run_config
from stateset_agents.exceptions import PipelineError, StateSetError
from stateset_agents.run_config import RunConfig
from tasks import entry, paths

if TYPE_CHECKING:
    from stateset_agents.training.hpo.search import Search

IDLE_SECONDS = 60.0

_log = logging.getLogger(__name__)


def run(
    config: RunConfig,
    *,
    storage: str | None = None,
    study_name: str | None = None,
    idle_seconds: float = IDLE_SECONDS,
    events: Path = paths.TUNE_EVENTS,
) -> int:
    """Run trials of the study until there has been none for so long; how many were run.

    Raises:
        PipelineError: an input is missing, or the search has not said which MLflow run is its own.
        ConfigurationError: there is no such study, or it is another search.
    """
    from stateset_agents.training.hpo.join import join_search
    from tasks.tune import make_search_of
    from tasks.tune_observer import TrialsOnRecord

    given = {"storage": storage, "study_name": study_name}
    changed = {name: value for name, value in given.items() if value is not None}
    config = config.model_copy(update={"tune": config.tune.model_copy(update=changed)})
    search = make_search_of(config, begin=False)
    observer = TrialsOnRecord(
        config.tracking,
        _run_of(search, idle_seconds),
        paths.STUDIES / search.study_name,
        events,
    )
    count = asyncio.run(join_search(replace(search, observer=observer), idle_seconds))
    _log.info("%d trials of study %s were run here", count, search.study_name)
    return count


def _run_of(search: Search, seconds: float) -> str:
    """The study's own MLflow run; it is written down soon after the study was begun."""
    from tasks.tune import MLFLOW_RUN

    study, began = search.open(), time.monotonic()
    while (found := study.noted(MLFLOW_RUN)) is None:
        if time.monotonic() - began > seconds:
            raise PipelineError(
                f"study {search.study_name!r} names no MLflow run: it was not begun by the step "
                "tune, or that ended at once; run the step"
            )
        time.sleep(0.5)
    return found


def main() -> int:
    """Run in this process; the exit code is 0, 1 for an error, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.tune_worker", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--params", type=Path, default=paths.PARAMS, help="default: %(default)s")
    parser.add_argument("--storage", help="default: that of params.yaml")
    parser.add_argument("--study", help="default: that of params.yaml's search")
    parser.add_argument("--idle-seconds", type=float, default=IDLE_SECONDS)
    parser.add_argument("--events", type=Path, help="where the flow that started this one reads")
    arguments = parser.parse_args()
    entry.quieten()
    entry.set_up_logging()
    if arguments.events is not None:
        entry.end_with_parent()
    try:
        run(
            run_config.load(arguments.params),
            storage=arguments.storage,
            study_name=arguments.study,
            idle_seconds=arguments.idle_seconds,
            events=arguments.events or paths.TUNE_EVENTS,
        )
    except StateSetError as error:
        entry.print_error(error)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
