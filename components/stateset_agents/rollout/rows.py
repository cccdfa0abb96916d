"""Rows: the samples of an episode, merged where one carries on from another.

Owns which tokens share a forward pass in training. It knows neither tensors nor advantages.

Notation: T tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

from stateset_agents.core.trajectory import MultiTurnTrajectory, TokenSample


@dataclass(frozen=True, slots=True)
class Row:
    """One forward pass of training, not padded.

    Attributes:
        token_ids: `(T,)`, contexts and answers in the order in which the model saw them.
        loss_mask: `(T,)`, True = the policy sampled this token.
        sampling_logprobs: `(T,)`, natural logarithms as the engine reported them, 0 where not
            sampled.
        turn_index: `(T,)`, which assistant turn of the conversation a token was sampled for,
            counted from 0; -1 where not sampled.
    """

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    sampling_logprobs: tuple[float, ...]
    turn_index: tuple[int, ...]


class _OpenRow:
    """A row that later samples may still extend."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.loss_mask: list[bool] = []
        self.sampling_logprobs: list[float] = []
        self.turn_index: list[int] = []

    def is_extended_by(self, prompt: tuple[int, ...]) -> bool:
        return list(prompt[: len(self.token_ids)]) == self.token_ids

    def extend(self, sample: TokenSample, last_turn: int) -> None:
        new_context = sample.prompt_token_ids[len(self.token_ids) :]
        self.token_ids += [*new_context, *sample.token_ids]
        self.loss_mask += [False] * len(new_context) + [True] * len(sample.token_ids)
        self.sampling_logprobs += [0.0] * len(new_context) + list(sample.logprobs)
        # What was drawn for a turn that never was spoken (the context was full) led to nothing
        # but the turn before it.
        turn = min(sample.turn, last_turn)
        self.turn_index += [-1] * len(new_context) + [turn] * len(sample.token_ids)


def trajectory_rows(trajectory: MultiTurnTrajectory) -> list[Row]:
    """Merge a trajectory's samples into as few rows as their contexts allow.

    A sample whose context starts with everything that a row holds extends that row (the longest, if
    several fit); any other starts a new row. Every sampled token is True in exactly one row, so the
    number of True equals the number of tokens sampled. A conversation whose history was never
    rewritten is one row. A failed trajectory has none: it is not trained on.
    """
    if trajectory.failed:
        return []
    rows: list[_OpenRow] = []
    last_turn = max(0, len(trajectory.assistant_turns) - 1)
    for sample in trajectory.samples:
        extended = [row for row in rows if row.is_extended_by(sample.prompt_token_ids)]
        if extended:
            row = max(extended, key=lambda candidate: len(candidate.token_ids))
        else:
            row = _OpenRow()
            rows.append(row)
        row.extend(sample, last_turn)
    return [
        Row(
            tuple(row.token_ids),
            tuple(row.loss_mask),
            tuple(row.sampling_logprobs),
            tuple(row.turn_index),
        )
        for row in rows
    ]
