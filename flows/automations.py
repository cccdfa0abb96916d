"""Have the Prefect server watch the runs: `python -m flows.automations`.

A process that was killed cannot say so, and its run would stay "Running" for ever and hold the
place of the next one. A run sends heartbeats (`tool.prefect.flows` in pyproject.toml); the server
marks it Crashed when they stop. infra/start_worker.sh runs this at every start: the automation is
made once and then kept as it is written here.
"""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from flows import environment
from stateset_agents.exceptions import PipelineError, StateSetError
from tasks import entry

if TYPE_CHECKING:
    from prefect.automations import AutomationCore

NAME = "crash-silent-runs"
HEARTBEAT = "prefect.flow-run.heartbeat"
# What may follow a heartbeat. Running is not among them: it can arrive after the first heartbeat,
# and would end the watch over a run that has only begun.
_SIGNS = (
    HEARTBEAT,
    *(
        f"prefect.flow-run.{state}"
        for state in ("Completed", "Failed", "Crashed", "Cancelled", "Paused", "Suspended")
    ),
)
_MISSED_HEARTBEATS = 3


def crash_silent_runs(silence_seconds: float) -> AutomationCore:
    """The automation: a run that sent a heartbeat and then nothing becomes Crashed.

    Args:
        silence_seconds: how long nothing may come; at least 10, as Prefect demands.
    """
    from prefect.automations import (
        AutomationCore,
        ChangeFlowRunState,
        EventTrigger,
        Posture,
        ResourceSpecification,
    )
    from prefect.client.schemas.objects import StateType

    return AutomationCore(
        name=NAME,
        description="A run whose heartbeats stop has lost its process.",
        enabled=True,
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            for_each={"prefect.resource.id"},
            after={HEARTBEAT},
            expect=set(_SIGNS),
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=silence_seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                message=f"no heartbeat for {silence_seconds:g} s: the run's process is gone",
            )
        ],
    )


def install(silence_seconds: float | None = None) -> UUID:
    """Make the automation on the server, or bring the one that is there up to date.

    Args:
        silence_seconds: how long nothing may come; None = three heartbeats.

    Returns:
        Its id.

    Raises:
        PipelineError: no server is named, it does not take it, or heartbeats are off.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectException
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if not settings.api.url:
        raise PipelineError(
            "no Prefect server is named; set PREFECT_API_URL, such as "
            f"http://127.0.0.1:{environment.PREFECT_PORT}/api"
        )
    if silence_seconds is None:
        if settings.flows.heartbeat_frequency is None:
            raise PipelineError(
                "runs send no heartbeats; set PREFECT_FLOWS_HEARTBEAT_FREQUENCY, in seconds"
            )
        silence_seconds = _MISSED_HEARTBEATS * settings.flows.heartbeat_frequency
    wanted = crash_silent_runs(silence_seconds)
    with get_client(sync_client=True) as client:
        try:
            found = client.read_automations_by_name(NAME)
            if not found:
                return client.create_automation(wanted)
            client.update_automation(found[0].id, wanted)
            # two workers that start at once can make one each
            for twin in found[1:]:
                client.delete_automation(twin.id)
            return found[0].id
        except (httpx.HTTPError, PrefectException) as error:
            raise PipelineError(
                f"the Prefect server at {settings.api.url} did not take the automation: {error}"
            ) from error


def main() -> int:
    """Install and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows.automations")
    parser.add_argument(
        "--silence-seconds", type=float, help="how long nothing may come (three heartbeats)"
    )
    arguments = parser.parse_args()
    entry.set_up_logging()
    try:
        if arguments.silence_seconds is not None and arguments.silence_seconds < 10:
            raise PipelineError(f"--silence-seconds {arguments.silence_seconds:g}: 10 or more")
        install(arguments.silence_seconds)
    except StateSetError as error:
        entry.print_error(error)
        return 1
    print(f"watching: {NAME}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
