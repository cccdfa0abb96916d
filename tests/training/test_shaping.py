"""What length costs, by hand."""

from __future__ import annotations

import pytest
import torch

from stateset_agents.training.batching import StepRows
from stateset_agents.training.shaping import overlong_penalty, shape_rewards


@pytest.mark.parametrize(
    ("tokens", "penalty"), [(0, 0), (80, 0), (85, 0.25), (90, 0.5), (100, 1), (130, 1)]
)
def test_length_costs_from_the_buffers_begin_to_the_limit(tokens: int, penalty: float) -> None:
    found = overlong_penalty(tokens, max_new_tokens=100, buffer=0.2)

    assert found == pytest.approx(penalty)


def made_rows() -> StepRows:
    return StepRows(
        rewards=torch.tensor([0.9, 0.4, 0.2], dtype=torch.float64),
        group_index=torch.tensor([0, 0, 0]),
        turn_rewards=[[0.8, 1.0], None, [0.3]],
        answer_tokens=[[100, 90], [85], []],
    )


def test_a_conversation_loses_the_mean_of_what_its_answers_lose_and_a_turn_its_own() -> None:
    rows = made_rows()

    shaped = shape_rewards(rows, max_new_tokens=100, buffer=0.2)

    # penalties: 1 and 0.5; 0.25; none, since nothing was sampled
    assert shaped.rewards.tolist() == pytest.approx([0.9 - 0.75, 0.4 - 0.25, 0.2])
    assert shaped.turn_rewards[0] == pytest.approx([-0.2, 0.5])
    assert shaped.turn_rewards[1:] == [None, [0.3]]
    assert rows.rewards.tolist() == [0.9, 0.4, 0.2]


def test_without_a_buffer_no_length_costs_anything() -> None:
    shaped = shape_rewards(made_rows(), max_new_tokens=100, buffer=0)

    assert shaped.rewards.tolist() == [0.9, 0.4, 0.2]
    assert shaped.turn_rewards == [[0.8, 1.0], None, [0.3]]
