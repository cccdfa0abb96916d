"""The nouns as the guide writes them, and seeds."""

from __future__ import annotations

import pytest

from stateset_agents.core.seeds import derive_seed
from stateset_agents.core.trajectory import (
    ConversationTurn,
    MultiTurnTrajectory,
    StopReason,
    to_messages,
    to_turn,
)
from stateset_agents.exceptions import DataError


def test_the_guides_trajectory_can_be_written() -> None:
    turn = ConversationTurn(
        role="assistant", content="Hello! How can I help you today?", reward=0.8, metadata={}
    )
    trajectory = MultiTurnTrajectory(
        trajectory_id="traj_001",
        turns=[ConversationTurn("user", "Hi."), turn],
        episode_reward=0.85,
        trajectory_group_id="group_001",
    )
    assert trajectory.assistant_turns == [turn]
    assert not trajectory.failed
    trajectory.stop_reason = StopReason.FAILED
    assert trajectory.failed


def test_messages_come_in_three_forms() -> None:
    turn = ConversationTurn("user", "Hi.")
    assert to_turn(turn, role="assistant") is turn
    assert to_turn("Hi.", role="assistant") == ConversationTurn("assistant", "Hi.")
    assert to_turn({"role": "system", "content": "Hi."}, role="user").role == "system"
    assert to_messages([turn, {"role": "assistant", "content": "Ho.", "name": "x"}]) == [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Ho."},
    ]
    with pytest.raises(DataError, match="content"):
        to_turn({"role": "user"}, role="user")


def test_a_seed_is_the_same_in_every_process() -> None:
    # printf '[1, "a"]' | b2sum -l 64
    assert derive_seed(1, "a") == 0x9EC0464774C04B61 >> 1


def test_seeds_of_different_names_differ() -> None:
    names = [(1, "a", 0), (1, "a", 1), (1, "b", 0), (2, "a", 0), (1, "a0"), ("1", "a", 0)]
    assert len({derive_seed(*name) for name in names}) == len(names)
