"""Following the registry: when the alias moves, the version that it names now takes over.

Owns looking, loading beside the version in service, trying it, and what is said when that fails:
the old version stays. Promotion and rollback are the same to it. It does not know requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stateset_agents.exceptions import StateSetError
from stateset_agents.serving.answer import Answer
from stateset_agents.serving.in_service import InService
from stateset_agents.serving.protocol import ChatRequest
from stateset_agents.serving.served_model import ServedModel, load_version
from stateset_agents.tracking.config import TrackingConfig

if TYPE_CHECKING:
    from stateset_agents.tracking.registry import RegisteredVersion

logger = logging.getLogger(__name__)

_MOST_LOOKS_SKIPPED = 64
_TRIAL = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "seed": 0}


class Follower:
    """Looks at an alias and exchanges what is in service.

    Args:
        in_service: what is exchanged.
        tracking: where the registry is.
        reference: `models:/NAME@ALIAS`.
        seconds: between two looks.
        generation: system prompt and sampling of a version that has none of its own.
    """

    def __init__(
        self,
        in_service: InService,
        tracking: TrackingConfig,
        reference: str,
        seconds: float,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        self._in_service = in_service
        self._tracking = tracking
        self._reference = reference
        self._seconds = seconds
        self._generation = generation
        self._told = ""  # what was said last of a registry that does not answer
        self._forget_refusals()

    async def run(self) -> None:
        """Look, again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self.look()
            except Exception:  # a defect here must not end the following, nor the service
                logger.exception("following %s failed; looked at again", self._reference)

    async def look(self) -> None:
        """Look once; where the alias has moved, load and try the version, and let it take over."""
        found = await self._find()
        if found is None:
            return
        current = self._in_service.current
        if found.version == current.version:
            self._forget_refusals()
            return
        if found.version == self._refused and self._looks_to_skip > 0:
            self._looks_to_skip -= 1
            return
        try:
            model = await self._load_and_try(found)
        except Exception as error:  # whatever a broken version raises, the old one goes on
            self._refuse(found, error)
            return
        self._in_service.replace(model)
        self._forget_refusals()
        logger.info(
            "%s (run %s) answers from now on; before it was %s",
            model.full_name,
            model.run_id,
            current.full_name,
        )

    async def _find(self) -> RegisteredVersion | None:
        """The version behind the alias; None when the registry does not say, which is told once."""
        from stateset_agents.tracking.registry import find_version

        try:
            found = await asyncio.to_thread(find_version, self._tracking, self._reference)
        except StateSetError as error:
            if str(error) != self._told:
                self._told = str(error)
                logger.warning("%s stays in service: %s", self._in_service.current.full_name, error)
            return None
        if self._told:
            logger.info("the registry answers again")
            self._told = ""
        return found

    async def _load_and_try(self, found: RegisteredVersion) -> ServedModel:
        """In a thread, because loading would hold up the answers under way."""
        logger.info("%s is now %s/%s: loading it", self._reference, found.name, found.version)
        loading = load_version(self._tracking, found, self._reference, self._generation)
        model = await asyncio.to_thread(asyncio.run, loading)
        try:
            request = ChatRequest(model=model.name, **_TRIAL)
            await Answer(model.agent, request).whole()
        except BaseException:
            await model.agent.engine.aclose()
            raise
        return model

    def _forget_refusals(self) -> None:
        self._refused = ""  # the version that could not take over
        self._failures = 0
        self._looks_to_skip = 0

    def _refuse(self, found: RegisteredVersion, error: Exception) -> None:
        self._failures = self._failures + 1 if found.version == self._refused else 1
        self._refused = found.version
        self._looks_to_skip = min(2 ** (self._failures - 1), _MOST_LOOKS_SKIPPED)
        known = isinstance(error, StateSetError)
        logger.error(
            "%s/%s cannot take over: %s; %s stays in service. It is tried again in %g s, and "
            "another version as soon as %s names one",
            found.name,
            found.version,
            error if known else f"{type(error).__name__}: {error}",
            self._in_service.current.full_name,
            (self._looks_to_skip + 1) * self._seconds,
            self._reference,
            exc_info=None if known else error,
        )
