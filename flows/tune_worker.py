"""The flow `tune-worker`: a work pool's machine helps with a search that runs elsewhere.

    prefect deployment run tune-worker/tune-worker

Started as often as there are machines (or processes) to help; each of its trials is a flow run
below it. The work itself is `tasks.tune_worker`'s, in a process that ends with this flow.
"""

from __future__ import annotations

import subprocess
import sys
import time
from uuid import UUID

from flows import environment  # before Prefect

# isort: split
from prefect import flow, get_client
from prefect.runtime import flow_run

from flows.tune import POLL_SECONDS, TrialRuns
from stateset_agents.exceptions import PipelineError
from tasks import paths
from tasks.tune_worker import IDLE_SECONDS


@flow(name="tune-worker", persist_result=False, log_prints=False)
def tune_worker(
    storage: str | None = None, study_name: str | None = None, idle_seconds: float = IDLE_SECONDS
) -> None:
    """Run trials of a search until there has been none for `idle_seconds`; without a storage and a
    name, of the search of this checkout's params.yaml.

    Raises:
        PipelineError: the worker ended with an error, which stands in the log.
    """
    root = environment.find_repository()
    environment.prepare_steps()
    events = root / paths.STATE / f"tune-worker-{flow_run.id}.jsonl"
    command = [sys.executable, "-m", "tasks.tune_worker", "--events", str(events)]
    command += ["--idle-seconds", str(idle_seconds)]
    for name, value in (("--storage", storage), ("--study", study_name)):
        command += [name, value] if value is not None else []
    with get_client(sync_client=True) as client:
        trials = TrialRuns(client, UUID(str(flow_run.id)), events)
        process = subprocess.Popen(command, cwd=root)
        try:
            while process.poll() is None:
                trials.look()
                time.sleep(POLL_SECONDS)
        finally:
            process.terminate()
            process.wait()
            trials.look()
            trials.end_open()
            events.unlink(missing_ok=True)
    if process.returncode:
        raise PipelineError(f"the worker of the search ended with exit code {process.returncode}")
