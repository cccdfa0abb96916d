"""What a rollout looked like, as numbers for a metric logger. Owns their definitions, no reward."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from stateset_agents.core.trajectory import StopReason, TrajectoryGroup
from stateset_agents.inference.engine import FinishReason


def rollout_statistics(groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
    """Count episodes and tokens. Means are over episodes that did not fail and are left out when
    there are none.

    Returns:
        - `rollout/episodes`, `rollout/failed`, `rollout/stopped/<reason>`: how many.
        - `rollout/sampled_tokens`: of all episodes, failed ones included.
        - `rollout/answer_tokens_mean`, `rollout/answer_tokens_max`: of one call of the model.
        - `rollout/context_tokens_max`: the longest prompt with its answer.
        - `rollout/truncated_fraction`: of calls, those that hit `max_new_tokens`.
        - `rollout/answers_mean`: assistant turns of one episode.
    """
    episodes = [trajectory for group in groups for trajectory in group.trajectories]
    alive = [episode for episode in episodes if not episode.failed]
    samples = [sample for episode in alive for sample in episode.samples]
    lengths = [len(sample.token_ids) for sample in samples]
    numbers: dict[str, float] = {
        "rollout/episodes": len(episodes),
        "rollout/failed": len(episodes) - len(alive),
        "rollout/sampled_tokens": sum(
            len(sample.token_ids) for episode in episodes for sample in episode.samples
        ),
    }
    for reason in (StopReason.COMPLETED, StopReason.MAX_TURNS, StopReason.CONTEXT_FULL):
        count = sum(episode.stop_reason is reason for episode in episodes)
        numbers[f"rollout/stopped/{reason.value}"] = count
    if alive:
        numbers["rollout/answers_mean"] = fmean(len(e.assistant_turns) for e in alive)
    if samples:
        numbers["rollout/answer_tokens_mean"] = fmean(lengths)
        numbers["rollout/answer_tokens_max"] = max(lengths)
        numbers["rollout/context_tokens_max"] = max(
            len(sample.prompt_token_ids) + len(sample.token_ids) for sample in samples
        )
        numbers["rollout/truncated_fraction"] = fmean(
            sample.finish_reason is FinishReason.LENGTH for sample in samples
        )
    return numbers
