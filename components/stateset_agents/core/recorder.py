"""What the policy sampled during one episode, kept where user code cannot lose it.

Owns the record of one episode's calls of the model and the context variable through which
`MultiTurnAgent.generate_response` finds it. It does not know environments nor rewards. Every
asyncio task has its own context, so episodes that run side by side do not see each other's record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stateset_agents.core.seeds import derive_seed
from stateset_agents.core.trajectory import Message, TokenSample

if TYPE_CHECKING:
    from stateset_agents.inference.chat_template import ChatTokenizer


@dataclass(frozen=True, slots=True)
class RecordedSample:
    """One call of the model: the messages it answered, the text it gave, the tokens of both, and
    what it thought and did not say (None: nothing, or thoughts are not told apart).
    """

    messages: tuple[Message, ...]
    text: str
    sample: TokenSample
    reasoning: str | None = None


class EpisodeRecorder:
    """The calls of the model in one episode, in the order in which they were made.

    Args:
        conversation_id: names the engine's KV cache for this episode.
        group_id: names the group whose first prompt the engine computes once.
        seed: the episode's; each call gets its own, derived from it and the call's number.

    Attributes:
        turn: the assistant turn that is being answered, from 0; whoever plays the episode sets it.
    """

    def __init__(self, conversation_id: str, seed: int, group_id: str | None = None) -> None:
        self.conversation_id = conversation_id
        self.group_id = group_id
        self.seed = seed
        self.turn = 0
        self._num_calls = 0
        self._recorded: dict[int, RecordedSample] = {}

    def begin_call(self) -> int:
        """Number a call before it is awaited: calls made at once keep their order and seeds."""
        self._num_calls += 1
        return self._num_calls - 1

    def call_seed(self, call: int) -> int:
        """The seed of one call, in [0, 2**63)."""
        return derive_seed(self.seed, call)

    def end_call(self, call: int, recorded: RecordedSample) -> None:
        """Keep what a call sampled; a call that raised is simply never ended."""
        self._recorded[call] = recorded

    @property
    def recorded(self) -> list[RecordedSample]:
        """Every call that has ended, in the order in which they were begun."""
        return [self._recorded[call] for call in sorted(self._recorded)]

    @property
    def samples(self) -> list[TokenSample]:
        """What was sampled so far, in the order of the calls."""
        return [entry.sample for entry in self.recorded]

    def spoken(self, answer: str, num_before: int) -> RecordedSample | None:
        """Which of the calls after the first `num_before` became the turn that says `answer`.

        An agent may sample several and speak one: that one, if its text was kept; else the last.
        None when nothing was sampled.
        """
        recorded = self.recorded[num_before:]
        if not recorded:
            return None
        same = [entry for entry in recorded if entry.text == answer]
        return (same or recorded)[-1]

    def continued_prompt(
        self, messages: Sequence[Message], tokenizer: ChatTokenizer
    ) -> tuple[int, ...] | None:
        """Token ids `(P,)` of a history that carries on from an answer in this record, or None.

        It carries on when it starts with the messages that were rendered then, followed by our
        answer, unchanged, followed by something new. The ids are those that the model saw and
        sampled plus the new messages' own; nothing that was sampled is tokenised again. After an
        answer that came with thoughts nothing carries on: they are no part of the history, so what
        follows has another beginning, and is rendered from the messages.
        """
        for earlier in reversed(self.recorded):
            if earlier.reasoning is not None:
                continue
            known = [*earlier.messages, {"role": "assistant", "content": earlier.text}]
            new = list(messages[len(known) :])
            if new and list(messages[: len(known)]) == known:
                sample = earlier.sample
                tail = tokenizer.continuation(sample.token_ids, sample.finish_reason, new)
                return (*sample.prompt_token_ids, *sample.token_ids, *tail)
        return None


_current: ContextVar[EpisodeRecorder | None] = ContextVar("episode_recorder", default=None)


def current_recorder() -> EpisodeRecorder | None:
    """The record of the episode that this code runs in; None outside an episode."""
    return _current.get()


@contextmanager
def recording(recorder: EpisodeRecorder) -> Iterator[EpisodeRecorder]:
    """Let calls of the model inside the block (and in tasks started there) go to `recorder`."""
    token = _current.set(recorder)
    try:
        yield recorder
    finally:
        _current.reset(token)
