"""Groups as JSON, for a checkpoint that holds conversations which are still to be trained on.

Owns that form. It does not know files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stateset_agents.core.trajectory import (
    ConversationTurn,
    MultiTurnTrajectory,
    StopReason,
    TokenSample,
    TrajectoryGroup,
)
from stateset_agents.inference.engine import FinishReason


def group_to_json(group: TrajectoryGroup) -> dict[str, Any]:
    """All that training and metrics read comes back as it was: tokens, log-probs, rewards, texts.
    In the scenario and in metadata, what JSON cannot hold comes back as its text.
    """
    return {
        "group_id": group.group_id,
        "scenario": _plain(group.scenario),
        "trajectories": [_trajectory_to_json(one) for one in group.trajectories],
    }


def group_from_json(stored: Mapping[str, Any]) -> TrajectoryGroup:
    """What `group_to_json` gave."""
    return TrajectoryGroup(
        group_id=stored["group_id"],
        scenario=stored["scenario"],
        trajectories=[_trajectory_from_json(one) for one in stored["trajectories"]],
    )


def _trajectory_to_json(trajectory: MultiTurnTrajectory) -> dict[str, Any]:
    # a turn's sample is one of the trajectory's
    places = {id(sample): place for place, sample in enumerate(trajectory.samples)}
    return {
        "trajectory_id": trajectory.trajectory_id,
        "turns": [
            {
                "role": turn.role,
                "content": turn.content,
                "reward": turn.reward,
                "metadata": _plain(turn.metadata),
                "sample": places.get(id(turn.sample)),
            }
            for turn in trajectory.turns
        ],
        "episode_reward": trajectory.episode_reward,
        "trajectory_group_id": trajectory.trajectory_group_id,
        "metadata": _plain(trajectory.metadata),
        "samples": [
            [
                list(sample.prompt_token_ids),
                list(sample.token_ids),
                list(sample.logprobs),
                sample.finish_reason.value,
                sample.turn,
            ]
            for sample in trajectory.samples
        ],
        "stop_reason": trajectory.stop_reason.value,
        "reward_parts": trajectory.reward_parts,
        "error": trajectory.error,
    }


def _trajectory_from_json(stored: Mapping[str, Any]) -> MultiTurnTrajectory:
    samples = [
        TokenSample(tuple(prompt), tuple(tokens), tuple(logprobs), FinishReason(reason), turn)
        for prompt, tokens, logprobs, reason, turn in stored["samples"]
    ]
    turns = [
        ConversationTurn(
            **{**turn, "sample": None if turn["sample"] is None else samples[turn["sample"]]}
        )
        for turn in stored["turns"]
    ]
    changed = {
        "samples": samples,
        "turns": turns,
        "stop_reason": StopReason(stored["stop_reason"]),
    }
    return MultiTurnTrajectory(**{**stored, **changed})


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(_with_text_keys(value), default=str))


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _with_text_keys(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_text_keys(inner) for inner in value]
    return value
