"""Helping with a search that another process has begun, on this machine or another.

Owns when a helper takes a trial and when it has waited enough. The process that began the search
decides what is run again and sums up.
"""

from __future__ import annotations

import asyncio
import time
from typing import get_args

from stateset_agents.training.hpo.search import POLL_SECONDS, Phase, Search, run_one


async def join_search(search: Search, idle_seconds: float) -> int:
    """Run trials of both phases until there has been none to run for so long; how many were run.

    Trials of the search come first; those with fresh seeds are there once the search has ended.
    """
    count, idle_since = 0, time.monotonic()
    while time.monotonic() - idle_since < idle_seconds:
        if await _run_next(search):
            count, idle_since = count + 1, time.monotonic()
        else:
            await asyncio.sleep(min(POLL_SECONDS, idle_seconds))
    return count


async def _run_next(search: Search) -> bool:
    for phase in get_args(Phase):
        study = search.open(phase)
        trial = study.take()
        if trial is not None:
            await run_one(search, phase, study, trial)
            return True
    return False
