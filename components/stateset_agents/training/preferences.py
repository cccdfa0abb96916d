"""Preference pairs in the place of conversations that are played.

Owns how a pair of the data becomes a group of two trajectories, the preferred one with reward 1 and
the other with 0, so that all that follows is the same as for a group that was played. It does not
know files, nor the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stateset_agents.core.agent import MultiTurnAgent
from stateset_agents.core.trajectory import (
    ConversationTurn,
    Message,
    MultiTurnTrajectory,
    TokenSample,
    TrajectoryGroup,
)
from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.inference.engine import FinishReason
from stateset_agents.training.checkpoint import digest
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.rollouts import StepRollout
from stateset_agents.training.scenario_order import scenarios_of_step


@dataclass(frozen=True, slots=True)
class Preference:
    """A conversation so far, oldest message first, and two continuations that begin and end with
    the assistant.
    """

    messages: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]


class PreferencePlayer:
    """Gives a step its pairs: a function of seed and step, so it has no state to save."""

    def __init__(
        self, preferences: Sequence[Preference], config: TrainingConfig, agent: MultiTurnAgent
    ) -> None:
        self._preferences = preferences
        self._config = config
        self._agent = agent

    async def play(self, step: int) -> StepRollout:
        """The pairs of step `step` (from 0), one for each scenario that a step would visit."""
        chosen = scenarios_of_step(
            self._preferences, step, self._config.groups_per_step, self._config.seed
        )
        groups = [
            preference_group(pair, f"{step}.{number}", self._agent.tokenizer)
            for number, pair in enumerate(chosen)
        ]
        return StepRollout(groups, seconds={"rollout": 0.0, "reward": 0.0})


def preference_fingerprint(preferences: Sequence[Preference]) -> dict[str, str]:
    """What tells a run on these pairs from another's; nothing without any."""
    return {"preferences": digest([asdict(one) for one in preferences])} if preferences else {}


def preference_group(pair: Preference, group_id: str, tokenizer: ChatTokenizer) -> TrajectoryGroup:
    """The pair as a group: every answer of a continuation counts as sampled, the token that ends it
    included.
    """
    sides = [(pair.chosen, 1.0), (pair.rejected, 0.0)]
    return TrajectoryGroup(
        group_id,
        {"id": group_id},
        [
            _trajectory(pair.messages, continuation, reward, f"{group_id}.{number}", tokenizer)
            for number, (continuation, reward) in enumerate(sides)
        ],
    )


def _trajectory(
    messages: Sequence[Message],
    continuation: Sequence[Message],
    reward: float,
    name: str,
    tokenizer: ChatTokenizer,
) -> MultiTurnTrajectory:
    said, samples = list(messages), list[TokenSample]()
    for message in continuation:
        if message["role"] == "assistant":
            answer = tuple(tokenizer.encode_answer(message["content"]))
            samples.append(
                TokenSample(
                    tuple(tokenizer.render(said)),
                    answer,
                    (0.0,) * len(answer),
                    FinishReason.STOP,
                    turn=len(samples),
                )
            )
        said.append(message)
    turns = [ConversationTurn(one["role"], one["content"]) for one in said]
    return MultiTurnTrajectory(name, turns, episode_reward=reward, samples=samples)
