"""Say that scenarios or preferences changed: `python -m flows.announce_data [--source NAME]`.

Emits the event `stateset.data.changed`; the deployment `on-new-data` starts on it. A webhook, a
bucket's notification or a job that imported data ends in this one command. What really runs is
DVC's decision: an announcement of nothing new costs one look.
"""

from __future__ import annotations

import argparse
import os
import sys

from flows import environment
from stateset_agents.exceptions import PipelineError, StateSetError
from tasks import entry

EVENT = "stateset.data.changed"


def announce(source: str) -> str:
    """Emit the event and return its id; it is with the server when this returns.

    Args:
        source: where the change is, such as `scenarios`; part of the event's resource id.

    Raises:
        PipelineError: no Prefect server is named, or it does not take the event.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.events import Event, Resource
    from prefect.exceptions import PrefectException
    from prefect.settings import get_current_settings

    address = get_current_settings().api.url
    if not address:
        raise PipelineError(
            "no Prefect server is named; set PREFECT_API_URL, such as "
            f"http://127.0.0.1:{environment.PREFECT_PORT}/api (`make ui` starts one there)"
        )
    resource = {"prefect.resource.id": f"stateset.data.{source}"}
    event = Event(event=EVENT, resource=Resource(resource), payload={"source": source})
    with get_client(sync_client=True) as client:
        try:
            # over HTTP: the client library's own way sends from a thread and hides a failure
            client.request("POST", "/events", json=[event.model_dump(mode="json")])
        except (httpx.HTTPError, PrefectException) as error:
            raise PipelineError(
                f"the Prefect server at {address} did not take the event: {error}"
            ) from error
    return str(event.id)


def main() -> int:
    """Announce and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows.announce_data")
    parser.add_argument("--source", default=os.environ.get("STATESET_DATA_SOURCE", "scenarios"))
    arguments = parser.parse_args()
    entry.set_up_logging()
    try:
        announce(arguments.source)
    except StateSetError as error:
        entry.print_error(error)
        return 1
    print(f"announced: {EVENT} ({arguments.source})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
