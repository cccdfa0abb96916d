"""What training says and checks in addition while STATESET_DEBUG is on.

Owns these records and checks. They cost time and change no number.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from stateset_agents import debug
from stateset_agents.core.trajectory import TrajectoryGroup
from stateset_agents.exceptions import TrainingError
from stateset_agents.training.batch import TrainingBatch

_log = logging.getLogger(__name__)

_SHOWN_CHARACTERS = 200


def tell_conversations(step: int, groups: Sequence[TrajectoryGroup]) -> None:
    """A record for each conversation of a step: how it ended, its reward and parts, its answers."""
    if not _log.isEnabledFor(logging.DEBUG):
        return
    for group in groups:
        for one in group.trajectories:
            parts = " ".join(f"{name}={value:.3f}" for name, value in one.reward_parts.items())
            answers = " | ".join(turn.content[:_SHOWN_CHARACTERS] for turn in one.assistant_turns)
            _log.debug(
                "step %d, %s: %s, reward %.4f %s, answers: %s",
                step,
                one.trajectory_id,
                one.stop_reason.value if one.stop_reason else "not ended",
                one.episode_reward,
                parts,
                answers,
            )


def check_batch(batch: TrainingBatch, vocabulary_size: int) -> None:
    """While debugging is on, demand of a step's batch what training takes for granted.

    Raises:
        TrainingError: a token that the model does not have, a sampled token whose log-prob is not
            below 0 or not finite, or an advantage that is not finite; all of them in one message.
    """
    if not debug.is_on():
        return
    sampled = batch.loss_mask
    problems = []
    if bool(((batch.token_ids < 0) | (batch.token_ids >= vocabulary_size)).any()):
        problems.append(
            f"token ids from {int(batch.token_ids.min())} to {int(batch.token_ids.max())}, and the "
            f"model has {vocabulary_size}: tokenizer and model do not belong together"
        )
    logprobs = batch.sampling_logprobs[sampled]
    if not bool((torch.isfinite(logprobs) & (logprobs <= 0)).all()):
        problems.append("log-probs of sampled tokens that are above 0 or not finite")
    if not bool(torch.isfinite(batch.advantages[sampled]).all()):
        problems.append("advantages that are not finite: look at the rewards")
    if problems:
        raise TrainingError(f"{debug.VARIABLE} found in this step's batch: {'; '.join(problems)}")
    _log.debug(
        "batch: %d rows of at most %d tokens, %d sampled; advantages from %.3f to %.3f",
        *batch.token_ids.shape,
        int(sampled.sum()),
        float(batch.advantages.min()),
        float(batch.advantages.max()),
    )
