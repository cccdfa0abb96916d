"""Which version answers now, and when one that was replaced may go.

Owns the exchange: a request is answered to its end by the version that it met, and a version that
was replaced is closed when the last such request has ended. It does not know where versions come
from, nor HTTP.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stateset_agents.serving.served_model import ServedModel


class InService:
    """The version that new requests meet, and those that are still answering older ones."""

    def __init__(self, model: ServedModel) -> None:
        self._current = model
        self._users: Counter[ServedModel] = Counter()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def current(self) -> ServedModel:
        """What a new request would meet."""
        return self._current

    @contextmanager
    def used(self) -> Iterator[ServedModel]:
        """The current version, which stays usable within the block, replaced or not."""
        model = self._current
        self._users[model] += 1
        try:
            yield model
        finally:
            self._users[model] -= 1
            self._close_if_done(model)

    def replace(self, model: ServedModel) -> None:
        """Let new requests meet another version."""
        before, self._current = self._current, model
        self._close_if_done(before)

    async def aclose(self) -> None:
        """Close every version, whether it is used or not."""
        models = {self._current, *self._users}
        await asyncio.gather(*(model.agent.engine.aclose() for model in models), *self._closing)

    def _close_if_done(self, model: ServedModel) -> None:
        if self._users[model]:
            return
        del self._users[model]
        if model is not self._current:
            task = asyncio.create_task(model.agent.engine.aclose())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
