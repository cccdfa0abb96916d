"""What was said to a user in earlier conversations.

Owns which turns are remembered, when old ones are summed up, and how both are put into words for
the next conversation. It does not know the model: a summary is asked of whoever has one.
"""

from __future__ import annotations

from collections.abc import Sequence

from stateset_agents.core.context_compression import Summarise, summary_request
from stateset_agents.core.trajectory import Message
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.inference.chat_template import ChatTokenizer

MAX_SUMMARY_TOKENS = 200
_TITLE = "What was said in earlier conversations with this user:"


class ConversationMemory:
    """The memory of one user's conversations.

    A history that starts with everything of the latest conversation carries it on; any other closes
    it, and from then on `recall` tells it. System messages are not remembered.

    Args:
        max_turns: turns of closed conversations that are kept; older ones are forgotten.
        summarization_threshold: once more turns than this are kept, all but the newest half of it
            are replaced by a summary. None: never.

    Raises:
        ConfigurationError: a number below 1, or a threshold that `max_turns` never lets be reached.

    Attributes:
        summary: of the turns that were summed up; "" before the first time.
    """

    def __init__(self, max_turns: int = 100, summarization_threshold: int | None = 50) -> None:
        problems = [
            f"{name} is {value!r}; a whole number is needed"
            for name, value in (
                ("max_turns", max_turns),
                ("summarization_threshold", summarization_threshold),
            )
            if not isinstance(value, int) and not (value is None and name != "max_turns")
        ]
        if problems:
            raise ConfigurationError(problems)
        if max_turns < 1:
            problems.append(f"max_turns is {max_turns}; keep at least 1 turn")
        if summarization_threshold is not None and not 1 <= summarization_threshold < max_turns:
            problems.append(
                f"summarization_threshold is {summarization_threshold}; it must be at least 1 and "
                f"below max_turns ({max_turns}), or turns are forgotten before they are summed up; "
                "None never sums up"
            )
        if problems:
            raise ConfigurationError(problems)
        self.max_turns = max_turns
        self.summarization_threshold = summarization_threshold
        self.summary = ""
        self._closed: list[Message] = []
        self._latest: list[Message] = []

    @property
    def turns(self) -> list[Message]:
        """Every turn that is kept word for word, oldest first, the latest conversation's last."""
        return [*self._closed, *self._latest]

    def remember(self, history: Sequence[Message], answer: str) -> None:
        """Take in a conversation, oldest message first, and the answer that was given to it."""
        spoken = _spoken(history)
        if not self._carries_on(spoken):
            self._close()
        self._latest = [*spoken, {"role": "assistant", "content": answer}]

    def recall(self, history: Sequence[Message]) -> str:
        """What to tell the model before it answers `history`; "" if there is nothing.

        The conversation that `history` carries on is not told: it stands there.
        """
        told = list(self._closed)
        if not self._carries_on(_spoken(history)):
            told = [*told, *self._latest][-self.max_turns :]
        lines = [self.summary] if self.summary else []
        lines += [f"{message['role']}: {message['content']}" for message in told]
        return "\n".join([_TITLE, *lines]) if lines else ""

    async def condense(self, ask: Summarise, tokenizer: ChatTokenizer, max_tokens: int) -> None:
        """Sum up the oldest turns if there are more than `summarization_threshold`.

        Args:
            ask: gives the summary that a request asks for.
            tokenizer: the model's.
            max_tokens: the most that the request may have.
        """
        threshold = self.summarization_threshold
        if threshold is None or len(self._closed) <= threshold:
            return
        newest = threshold // 2
        old = self._closed[: len(self._closed) - newest]
        if self.summary:
            old = [{"role": "earlier", "content": self.summary}, *old]
        self.summary = await ask(summary_request(old, tokenizer, max_tokens), MAX_SUMMARY_TOKENS)
        self._closed = self._closed[len(self._closed) - newest :]

    def clear(self) -> None:
        """Forget everything."""
        self.summary, self._closed, self._latest = "", [], []

    def _carries_on(self, spoken: Sequence[Message]) -> bool:
        return bool(self._latest) and list(spoken[: len(self._latest)]) == self._latest

    def _close(self) -> None:
        self._closed = [*self._closed, *self._latest][-self.max_turns :]
        self._latest = []


def _spoken(history: Sequence[Message]) -> list[Message]:
    return [dict(message) for message in history if message["role"] != "system"]
