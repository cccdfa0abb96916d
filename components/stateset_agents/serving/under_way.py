"""The answers that are under way: how many there may be, and their end when the server stops.

Owns the limit. It does not know how answers are made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stateset_agents.serving.answer import Answer
from stateset_agents.serving.config import ServeConfig
from stateset_agents.serving.refusals import RequestError

if TYPE_CHECKING:
    from stateset_agents.serving.protocol import ChatRequest
    from stateset_agents.serving.served_model import ServedModel


class UnderWay:
    """Every answer that is being sampled or waits for the engine."""

    def __init__(self, config: ServeConfig) -> None:
        self._max_requests = config.max_requests
        self._retry_after = config.retry_after_seconds
        self._answers: set[Answer] = set()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._answers)

    def begin(self, model: ServedModel, request: ChatRequest) -> Answer:
        """Begin to answer.

        Raises:
            RequestError: there are as many as there may be.
        """
        if len(self._answers) >= self._max_requests:
            raise RequestError(
                503,
                f"{len(self._answers)} requests are being answered or wait, and no more are taken "
                f"at once; ask again in {self._retry_after} s",
                code="overloaded",
                retry_after=self._retry_after,
            )
        answer = Answer(model.agent, request)
        self._answers.add(answer)
        answer.on_end(self._answers.discard)
        return answer

    def end_all(self) -> None:
        """Stop every answer: who waits for one is told that the server stops."""
        for answer in list(self._answers):
            answer.fail(
                RequestError(
                    503,
                    "the server was told to stop, and this answer took too long for it; ask again",
                    code="stopping",
                    retry_after=self._retry_after,
                )
            )
