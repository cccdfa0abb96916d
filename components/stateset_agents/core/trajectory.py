"""The world of conversations: turns, trajectories, groups.

A `TrajectoryGroup` is the first of the two objects that cross rooms (the other is
`training.batch.TrainingBatch`). Each assistant turn keeps what was *sampled*, token ids and
log-probs, because training never makes tokens from text a second time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from stateset_agents.exceptions import DataError
from stateset_agents.inference.engine import FinishReason

ROLES = ("system", "user", "assistant", "tool")


class StopReason(StrEnum):
    """Why an episode ended."""

    COMPLETED = "completed"  # the environment said done
    MAX_TURNS = "max_turns"
    CONTEXT_FULL = "context_full"  # the next turn would not fit the model's context
    FAILED = "failed"  # the agent or the environment raised: masked out and counted


@dataclass(frozen=True, slots=True)
class TokenSample:
    """What one call of the model saw and sampled.

    Attributes:
        prompt_token_ids: `(P,)`, the context.
        token_ids: `(T,)`, sampled; the stop token is included if it was sampled.
        logprobs: `(T,)`, at sampling temperature, natural logarithm.
        finish_reason: why sampling ended.
        turn: which assistant turn of the episode it was drawn for, counted from 0.
    """

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    turn: int = 0


@dataclass(slots=True)
class ConversationTurn:
    """One message. `reward` is the turn's own, if a reward function gives any.

    It reads like a message as well (`turn["content"]`, `turn.get("role")`, `dict(turn)`), so an
    environment takes the agent's answer and plain messages alike.
    """

    role: str
    content: str
    reward: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    sample: TokenSample | None = None

    def __post_init__(self) -> None:
        """See that it is a message.

        Raises:
            DataError: a role that there is not, or a content that is no text.
        """
        if self.role not in ROLES or not isinstance(self.content, str):
            raise DataError(
                f"a turn has role {self.role!r} and content {self.content!r:.80}; allowed are the "
                f"roles {', '.join(ROLES)}, and text"
            )

    def __getitem__(self, key: str) -> str:
        if key not in ("role", "content"):
            raise KeyError(key)
        text: str = getattr(self, key)
        return text

    def keys(self) -> tuple[str, ...]:
        """Those of a message."""
        return ("role", "content")

    def get(self, key: str, default: Any = None) -> Any:
        """As of a message."""
        return self[key] if key in self.keys() else default


# A message as chat templates and the OpenAI protocol have it: {"role": ..., "content": ...}.
Message = dict[str, str]


def to_turn(message: ConversationTurn | Mapping[str, Any] | str, role: str) -> ConversationTurn:
    """Give a message the form of a turn; a bare string is spoken by `role`.

    Raises:
        DataError: it is neither a turn, nor a string, nor a mapping with the strings `role` and
            `content`.
    """
    if isinstance(message, ConversationTurn):
        return message
    if isinstance(message, str):
        return ConversationTurn(role=role, content=message)
    if isinstance(message, Mapping):
        found = message.get("role"), message.get("content")
        if isinstance(found[0], str) and isinstance(found[1], str):
            return ConversationTurn(role=found[0], content=found[1])
    raise DataError(
        f"a message is {message!r}; allowed is a ConversationTurn, a string, or a mapping with the "
        'strings "role" and "content"'
    )


def to_messages(history: Iterable[ConversationTurn | Mapping[str, Any]]) -> list[Message]:
    """Turn a history into plain messages, which chat templates take.

    Raises:
        DataError: it is one message and no list of them, or an entry is not a message.
    """
    if isinstance(history, str | Mapping | ConversationTurn):
        raise DataError(
            f"a history is a list of messages, and this is one: {history!r:.80}; write "
            '[{"role": "user", "content": ...}]'
        )
    turns = (to_turn(entry, role="user") for entry in history)
    return [{"role": turn.role, "content": turn.content} for turn in turns]


@dataclass(slots=True)
class MultiTurnTrajectory:
    """One conversation, played to its end.

    `samples` are in the order in which they were drawn; an agent that calls the model twice in one
    turn has two. `reward_parts` are the unweighted scores by reward name. `episode_reward` is NaN
    where the reward function gave no finite number.
    """

    trajectory_id: str
    turns: list[ConversationTurn]
    episode_reward: float = 0.0
    trajectory_group_id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    samples: list[TokenSample] = field(default_factory=list)
    stop_reason: StopReason = StopReason.COMPLETED
    reward_parts: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def failed(self) -> bool:
        """True when the rollout raised; such a trajectory is never trained on."""
        return self.stop_reason is StopReason.FAILED

    @property
    def has_reward(self) -> bool:
        """False when the rollout raised or the reward is not finite: left out of training."""
        return not self.failed and math.isfinite(self.episode_reward)

    @property
    def assistant_turns(self) -> list[ConversationTurn]:
        """The turns that the policy spoke."""
        return [turn for turn in self.turns if turn.role == "assistant"]


@dataclass(slots=True)
class TrajectoryGroup:
    """The trajectories of one scenario, G of them: what a group-relative advantage compares."""

    group_id: str
    scenario: dict[str, Any]
    trajectories: list[MultiTurnTrajectory]
