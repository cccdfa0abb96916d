"""What an answer's length costs, before rewards are compared.

Owns DAPO's overlong shaping for conversations. It does not know reward functions, whose rewards it
changes for training alone: metrics, spread of groups and promotion see what they gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from stateset_agents.training.batching import StepRows


def overlong_penalty(tokens: int, *, max_new_tokens: int, buffer: float) -> float:
    """What an answer of so many tokens loses, from 0 to 1.

    0 up to (1 - buffer) * max_new_tokens, then along a line, 1 at max_new_tokens, where the engine
    cuts an answer off. Yu et al. 2025 (arXiv:2503.14476), equation 13, with L_max = max_new_tokens
    and L_cache = buffer * max_new_tokens. `buffer` 0: always 0.
    """
    if buffer == 0:
        return 0.0
    room = buffer * max_new_tokens
    return min(1.0, max(0.0, (tokens - (max_new_tokens - room)) / room))


def shape_rewards(rows: StepRows, *, max_new_tokens: int, buffer: float) -> StepRows:
    """The same rows with rewards less what long answers cost.

    The limit is one answer's, so in a conversation each answer has its own penalty: a turn's reward
    loses that of its answer, the conversation's the mean of them, which is within [0, 1] however
    many turns there are. A turn in which the model was called several times loses what the longest
    call costs.
    """
    if buffer == 0:
        return rows

    def penalties(answers: Sequence[int]) -> list[float]:
        return [
            overlong_penalty(tokens, max_new_tokens=max_new_tokens, buffer=buffer)
            for tokens in answers
        ]

    of_turns = [penalties(answers) for answers in rows.answer_tokens]
    of_conversations = [fmean(lost) if lost else 0.0 for lost in of_turns]
    return replace(
        rows,
        rewards=rows.rewards - torch.tensor(of_conversations, dtype=rows.rewards.dtype),
        turn_rewards=[
            None if told is None else _less(told, lost)
            for told, lost in zip(rows.turn_rewards, of_turns, strict=True)
        ],
    )


def _less(rewards: Sequence[float], penalties: Sequence[float]) -> list[float]:
    # a turn for which nothing was sampled has no penalty, one that was never spoken has no reward
    missing = [0.0] * (len(rewards) - len(penalties))
    return [reward - lost for reward, lost in zip(rewards, [*penalties, *missing], strict=False)]
