"""The flow `promote`: what a person does to the version in service, by hand.

    python -m flows.promote --history
    python -m flows.promote --rollback [--reason "..."]
    python -m flows.promote --version N --reason "..."

The line promotes by itself, through the gates (`tasks.promote_model`); this is for what they cannot
know. The two that change something run as Prefect flows, so that they are seen on its pages; the
registry keeps who, when, why, from and to. Where a version comes from is another question:
`stateset-agents lineage`.
"""

from __future__ import annotations

import argparse
import os
import sys

from flows import environment

if __name__ == "__main__":
    environment.prepare_terminal()

from prefect import flow

from stateset_agents import run_config
from stateset_agents.exceptions import StateSetError
from stateset_agents.tracking import promotion
from stateset_agents.tracking.promotion import HistoryEntry
from tasks import entry, paths

_RESTART = (
    "servers that do not follow the registry (serve --follow) keep the version that they loaded "
    "when they started: restart them"
)


@flow(name="promote", persist_result=False)
def promote(version: str, reason: str) -> str:
    """Put a version into service, past the gates.

    Args:
        version: its number in the registry.
        reason: why; it is kept.

    Raises:
        RegistryError: there is no such version, no reason, or it is champion already.
    """
    config = _config()
    return _sentence(
        promotion.set_champion(
            config.tracking, version, reason, lock_seconds=config.promote.lock_seconds
        )
    )


@flow(name="rollback", persist_result=False)
def rollback(reason: str = "") -> str:
    """Put the champion before the present one back into service.

    Args:
        reason: why; it is kept.

    Raises:
        RegistryError: there is no earlier champion.
    """
    config = _config()
    return _sentence(
        promotion.roll_back(config.tracking, reason, lock_seconds=config.promote.lock_seconds)
    )


def show_history() -> str:
    """Every change of the champion, oldest first, a line each."""
    entries = promotion.history(_config().tracking)
    return "\n".join(_sentence(entry) for entry in entries) or "nothing was promoted yet"


def _config() -> run_config.RunConfig:
    # paths in params.yaml, mlflow.db among them, are relative to the repository's root
    os.chdir(environment.find_repository())
    return run_config.load(paths.PARAMS)


def _sentence(change: HistoryEntry) -> str:
    before, after = change.from_version or "none", change.to_version or "none"
    return f"{change.when}  {change.action}: {before} -> {after}, by {change.who}: {change.why}"


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, do it, and say what was done; 1 after a `StateSetError`."""
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--version", help="put this version into service; needs --reason")
    what.add_argument("--rollback", action="store_true", help="put the previous champion back")
    what.add_argument("--history", action="store_true", help="every change so far")
    parser.add_argument("--reason", default="", help="why; kept in the history")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.history:
            text = show_history()
        elif chosen.rollback:
            text = f"{rollback(chosen.reason)}\n{_RESTART}"
        else:
            text = f"{promote(chosen.version, chosen.reason)}\n{_RESTART}"
    except StateSetError as error:
        entry.print_error(error)
        return 1
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
