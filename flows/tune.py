"""The flow `tune`: the search for parameters, with a Prefect run for each of its trials.

    python -m flows.tune [--force]

The step `tune` searches, so `dvc repro` searches as well and comes to the same. What this adds is
what people see: while the step runs, each of its trials is a flow run below this one, named and
tagged, with its parameters and what it came to.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows import environment

if __name__ == "__main__":
    environment.prepare_terminal()

from prefect import flow, get_client, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Crashed, Failed, Running

from flows import repository
from flows.repository import StepOutcome
from flows.step_runs import as_task
from flows.steps import STEPS
from stateset_agents import run_config
from stateset_agents.exceptions import StateSetError
from tasks import entry, paths

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

TAG = "tune"
POLL_SECONDS = 1.0


@flow(name="tune-trial", persist_result=False)
def tune_trial(study: str, label: str, params: dict[str, Any], mlflow_run: str) -> None:
    """One trial, as the pages show it. It is not called: the step's processes run trials, and what
    they tell becomes runs of this flow.
    """


@task(name="trial", persist_result=False)
def _trial_below() -> None:
    """What hangs a trial's run below the search's in Prefect's pages; it is not called either."""


def asks_for_trials(root: Path) -> bool:
    """Whether params.yaml wants a search.

    Raises:
        ConfigurationError: params.yaml is wrong.
    """
    return run_config.load(root / paths.PARAMS).tune.n_trials > 0


@flow(name="tune", persist_result=False, log_prints=False)
def tune(force: bool = False) -> StepOutcome:
    """Bring the step `tune` up to date, and show its trials.

    Raises:
        PipelineError: the step failed, or cannot start.
    """
    root = environment.find_repository()
    environment.prepare_steps()
    events = root / paths.TUNE_EVENTS
    events.unlink(missing_ok=True)
    step = next(one for one in STEPS if one.name == "tune")
    with get_client(sync_client=True) as client:
        trials = TrialRuns(client, UUID(str(flow_run.id)), events)
        running = as_task(step).submit(root, step.name, force)
        while not running.state.is_final():
            trials.look()
            running.wait(timeout=POLL_SECONDS)
        trials.look()
    outcome = running.result()
    report = root / paths.TUNE_REPORT / "summary.json"
    create_markdown_artifact(_as_markdown(json.loads(report.read_text())), key="tune-result")
    return outcome


class TrialRuns:
    """Flow runs made of the lines that the step's processes write."""

    def __init__(self, client: SyncPrefectClient, parent: UUID, events: Path) -> None:
        self._client, self._parent, self._events = client, parent, events
        self._read = 0
        self._runs: dict[str, UUID] = {}

    def look(self) -> None:
        """Take in what was written since the last time."""
        if not self._events.is_file():
            return
        with self._events.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            event = json.loads(line)
            if event.pop("event") == "begin":
                self._begin(**event)
            else:
                self._end(**event)

    def end_open(self) -> None:
        """Say of those that have begun and not ended that they crashed."""
        for name in list(self._runs):
            self._end(name, "crashed", {}, "")

    def _begin(self, name: str, **parameters: Any) -> None:
        # One that is taken up again after its process died is another run: the first one crashed.
        if name in self._runs:
            self._set(self._runs[name], Crashed(message="its process died; taken up again"))
        below = self._client.create_task_run(
            _trial_below, flow_run_id=self._parent, dynamic_key=f"{name}-{self._read}", name=name
        )
        run = self._client.create_flow_run(
            tune_trial,
            name=parameters["label"],
            parameters=parameters,
            tags=[TAG, parameters["study"], name.partition("-")[0]],
            parent_task_run_id=below.id,
            state=Running(),
        )
        self._runs[name] = run.id

    def _end(self, name: str, state: str, measures: dict[str, float], reason: str) -> None:
        told = ", ".join(f"{measure} {value:.4g}" for measure, value in measures.items())
        final: State = {
            "complete": lambda: Completed(message=told),
            "pruned": lambda: Cancelled(name="Pruned", message=reason),
            "failed": lambda: Failed(message=reason),
        }.get(state, lambda: Crashed(message="it was interrupted"))()
        if name in self._runs:
            self._set(self._runs.pop(name), final)

    def _set(self, run: UUID, state: State) -> None:
        self._client.set_flow_run_state(run, state, force=True)


def _as_markdown(summary: dict[str, Any]) -> str:
    lines = ["# Search for parameters", "", summary["why"], ""]
    if not summary["trials"]:
        return "\n".join(lines)
    names = list(summary["objectives"])
    lines += [
        f"| trial | state | {' | '.join(names)} | seconds | parameters |",
        f"| --- | --- | {' | '.join('---' for _ in names)} | --- | --- |",
    ]
    for trial in summary["trials"]:
        values = [f"{(trial['values'] or {}).get(name, float('nan')):.4g}" for name in names]
        params = ", ".join(f"{name}={value}" for name, value in trial["params"].items())
        lines.append(
            f"| {trial['number']} | {trial['state']} | {' | '.join(values)} "
            f"| {trial['duration_seconds']:.1f} | {params} |"
        )
    lines += [
        "",
        f"Report: `{paths.TUNE_REPORT}/report.html`. "
        f"Live: `optuna-dashboard {summary['storage']}`, then [its page](http://127.0.0.1:8080/dashboard).",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the flow in this process; the exit code is 0, 1 for an error, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m flows.tune", description=tune.__doc__)
    parser.add_argument("--force", action="store_true", help="search even if nothing changed")
    arguments = parser.parse_args()
    entry.set_up_logging()
    environment.end_well_when_told()
    try:
        root = environment.find_repository()
        with repository.hold_checkout(root):
            repository.require_idle_dvc(root)
            outcome = tune(force=arguments.force)
        print(f"tune: {f'done in {outcome.seconds:.0f} s' if outcome.ran else 'up to date'}")
    except StateSetError as error:
        entry.print_error(error)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
