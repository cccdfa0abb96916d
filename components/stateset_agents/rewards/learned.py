"""A reward that was learned from preferences: the reward model's inference side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stateset_agents.core.reward import RewardFunction, RewardResult, Scorable
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.inference.loading import DtypeName
from stateset_agents.rewards.reward_network import (
    Calibration,
    RewardNetwork,
    conversation_tokens,
    load_reward_tokenizer,
)

if TYPE_CHECKING:
    from stateset_agents.inference.chat_template import ChatTokenizer

_Sequence = tuple[int, ...]  # token ids of a conversation up to and with an answer


class LearnedReward(RewardFunction):
    """The mean over assistant turns of `sigmoid((score - centre) / temperature)`.

    `score` is the Bradley-Terry score of the turn in its place: the conversation up to and with it.
    The result is in (0, 1): the calibrated probability that people prefer the answer to one of
    middling quality among those that the model was calibrated on.
    Fooled by: whatever the preferences were decided by that is not quality (length, a tone, a
    phrase), and by answers unlike any in the pairs, on which its probability means nothing. Keep
    its weight below that of what can be checked, and look at its calibration plot.

    All turns of all conversations go through the model together; what they share (the policy, the
    user's turns, the earlier answers) is computed once.

    Args:
        network: the reward model.
        tokenizer: the one it was trained with.
        weight: its share in a composite.
        name: its key in a composite's breakdown.
        max_batch_tokens: the most tokens in one forward pass.
    """

    def __init__(
        self,
        network: RewardNetwork,
        tokenizer: ChatTokenizer,
        weight: float = 1.0,
        name: str | None = None,
        *,
        max_batch_tokens: int = 1024,
    ) -> None:
        super().__init__(weight=weight, name=name)
        self.network = network
        self.tokenizer = tokenizer
        self.max_batch_tokens = max_batch_tokens

    @classmethod
    def load(
        cls,
        folder: Path | str,
        weight: float = 1.0,
        name: str | None = None,
        *,
        max_batch_tokens: int = 1024,
        dtype: DtypeName = "auto",
    ) -> LearnedReward:
        """Read a folder that `save`, or the step `train_reward_model`, wrote; safetensors only.

        It runs on the first CUDA device where there is one. `dtype` "auto" computes in bfloat16
        where the processor has it.

        Raises:
            ModelSourceError: the folder is not there or is not a whole reward model.
        """
        folder = Path(folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(
            RewardNetwork.load(folder, dtype, device),
            load_reward_tokenizer(folder),
            weight,
            name,
            max_batch_tokens=max_batch_tokens,
        )

    def save(self, folder: Path | str) -> None:
        """Write what `load` reads: safetensors, tokenizer, calibration. Weight and name are not of
        the model and not in it.
        """
        self.network.save(Path(folder), self.tokenizer)

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 0."""
        return (await self.compute_rewards([(turns, context or {})]))[0]

    async def compute_rewards(self, conversations: Sequence[Scorable]) -> list[RewardResult]:
        """Score many in as few forward passes as `max_batch_tokens` allows."""
        groups = [self._sequences(turns) for turns, _ in conversations]
        scores = self._score_once(groups)
        results = []
        for group in groups:
            raw = [scores[sequence] for sequence in group]
            turn_scores = [_probability(score, self.network.calibration) for score in raw]
            results.append(
                RewardResult(
                    score=sum(turn_scores) / len(turn_scores) if turn_scores else 0.0,
                    breakdown={"raw": sum(raw) / len(raw) if raw else 0.0},
                    turn_scores=turn_scores,
                )
            )
        return results

    def _score_once(self, groups: Sequence[Sequence[_Sequence]]) -> dict[_Sequence, float]:
        """A score for each different sequence. In bfloat16 the same one in two packs has two
        slightly different ones, and a group's advantages, divided by its spread, would make a
        difference of quality out of that.
        """
        seen: set[_Sequence] = set()
        fresh = []
        for group in groups:
            fresh.append([sequence for sequence in group if sequence not in seen])
            seen.update(group)
        filled = [group for group in fresh if group]
        scored = self.network.score(filled, self.max_batch_tokens)
        ordered = [sequence for group in filled for sequence in group]
        return dict(zip(ordered, scored, strict=True))

    def _sequences(self, turns: Sequence[ConversationTurn]) -> list[_Sequence]:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        return [
            tuple(conversation_tokens(self.tokenizer, messages[: end + 1], self.network.max_tokens))
            for end, turn in enumerate(turns)
            if turn.role == "assistant"
        ]


def _probability(score: float, calibration: Calibration) -> float:
    z = (score - calibration.centre) / calibration.temperature
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))
