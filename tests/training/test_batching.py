"""From conversations to rows, batches and micro-batches."""

from __future__ import annotations

import math

import pytest
import torch

from stateset_agents.core.trajectory import (
    ConversationTurn,
    MultiTurnTrajectory,
    StopReason,
    TokenSample,
    TrajectoryGroup,
)
from stateset_agents.exceptions import TrainingError
from stateset_agents.inference.engine import FinishReason
from stateset_agents.training.advantages import step_advantages
from stateset_agents.training.batching import make_batch, micro_batches, step_rows
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.objective import objective_of
from tests.training.made import make_advantages, make_rows, to_batch


def sample(prompt: range, ids: range, turn: int = 0) -> TokenSample:
    return TokenSample(tuple(prompt), tuple(ids), (-1.0,) * len(ids), FinishReason.STOP, turn)


def conversation(*samples: tuple[range, range], reward: float = 0.0) -> MultiTurnTrajectory:
    return MultiTurnTrajectory(
        trajectory_id="t",
        turns=[],
        episode_reward=reward,
        samples=[sample(prompt, ids) for prompt, ids in samples],
    )


def group_of(*trajectories: MultiTurnTrajectory) -> TrajectoryGroup:
    return TrajectoryGroup("g", {}, list(trajectories))


def test_every_sampled_token_of_a_conversation_is_trained_on_and_no_other() -> None:
    talk = conversation((range(4), range(4, 7)), (range(9), range(9, 11)))

    rows = step_rows([group_of(talk)], TrainingConfig())

    assert [row.token_ids for row in rows.rows] == [tuple(range(11))]
    assert [n for n, sampled in enumerate(rows.rows[0].loss_mask) if sampled] == [4, 5, 6, 9, 10]


def test_a_failed_conversation_gives_no_row_and_no_reward_and_is_counted() -> None:
    failed = conversation((range(4), range(4, 7)), reward=float("nan"))
    failed.stop_reason = StopReason.FAILED
    fine = conversation((range(4), range(4, 6)), reward=0.5)

    rows = step_rows([group_of(failed, fine)], TrainingConfig())

    assert rows.rewards.tolist() == [0.5]
    assert [row.trajectory for row in rows.rows] == [0]
    assert rows.counts["failed"] == 1


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_conversation_whose_reward_is_no_number_is_left_out_and_counted(reward: float) -> None:
    bad = conversation((range(4), range(4, 7)), reward=reward)
    fine = conversation((range(4), range(4, 6)), reward=0.5)

    rows = step_rows([group_of(bad, fine)], TrainingConfig())

    assert rows.rewards.tolist() == [0.5]
    assert [row.token_ids for row in rows.rows] == [tuple(range(6))]
    assert rows.counts["nonfinite_rewards"] == 1


def test_a_turn_whose_reward_is_no_number_takes_its_conversation_out() -> None:
    talk = MultiTurnTrajectory("t", [ConversationTurn("assistant", "a", reward=math.nan)])

    rows = step_rows([group_of(talk, conversation(reward=0.5))], TrainingConfig())

    assert (len(rows.rewards), rows.counts["nonfinite_rewards"]) == (1, 1)


def test_without_a_single_reward_that_is_a_number_the_step_is_an_error() -> None:
    with pytest.raises(TrainingError, match="all 2 conversations of this step are NaN or infinite"):
        step_rows([group_of(*[conversation(reward=math.nan)] * 2)], TrainingConfig())


def test_the_longest_call_of_a_turn_is_the_length_of_its_answer() -> None:
    talk = MultiTurnTrajectory(
        trajectory_id="t",
        turns=[ConversationTurn("assistant", "a"), ConversationTurn("assistant", "b")],
        samples=[
            sample(range(3), range(3, 7)),
            sample(range(9), range(9, 11)),
            sample(range(15), range(15, 16), turn=1),
        ],
    )

    assert step_rows([group_of(talk)], TrainingConfig()).answer_tokens == [[4, 1]]
    assert step_rows([group_of(conversation())], TrainingConfig()).answer_tokens == [[]]


def test_a_conversation_in_which_nothing_was_sampled_counts_in_the_baseline_only() -> None:
    rows = step_rows([group_of(conversation(reward=0.2))], TrainingConfig())

    assert (len(rows.rows), len(rows.rewards), rows.counts["empty"]) == (0, 1, 1)


def test_what_exceeds_the_lengths_is_left_out_and_counted() -> None:
    long_opening = conversation((range(9), range(9, 12)))
    long_talk = conversation((range(5), range(5, 8)), (range(10), range(10, 20)))
    config = TrainingConfig(max_prompt_length=8, max_completion_length=7)

    rows = step_rows([group_of(long_opening, long_talk)], config)

    assert rows.counts["prompt_too_long"] == 1
    # five tokens of opening and seven more; ten were sampled in the second answer, two of them fit
    assert rows.counts["cut_tokens"] == 8
    assert [row.token_ids for row in rows.rows] == [tuple(range(12))]


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("sequence_mean", [1 / (2 * 3), 1 / (2 * 3), 1 / 2]),
        ("token_mean", [1 / 4] * 3),
        ("fixed_length", [1 / (2 * 64)] * 3),
        ("sequence_sum", [1 / 2] * 3),
        ("token_sum", [1.0] * 3),
    ],
)
def test_tokens_of_a_split_conversation_weigh_as_if_it_were_one_row(
    aggregation: str, expected: list[float]
) -> None:
    # the first conversation's context was rewritten: two rows with two and one sampled tokens
    split = conversation((range(4), range(4, 6)), (range(50, 54), range(7, 8)), reward=1)
    whole = conversation((range(4), range(4, 5)))
    rows = step_rows([group_of(split, whole)], TrainingConfig())

    batch = make_batch(
        rows,
        torch.ones(2),
        loss_aggregation=aggregation,  # type: ignore[arg-type]
        max_completion_length=64,
        pad_token_id=0,
        temperature=1.0,
        keep_all_rows=True,
    )

    per_row = [batch.loss_weights[n][batch.loss_mask[n]][0].item() for n in range(3)]
    assert per_row == pytest.approx(expected)
    assert bool((batch.loss_weights[~batch.loss_mask] == 0).all())


def test_with_credit_by_turn_a_token_has_its_own_turns_advantage() -> None:
    first, second = sample(range(3), range(3, 5)), sample(range(7), range(7, 8), turn=1)
    talk = MultiTurnTrajectory(
        trajectory_id="t",
        turns=[
            ConversationTurn("assistant", "a", reward=0.2, sample=first),
            ConversationTurn("assistant", "b", reward=0.9, sample=second),
        ],
        samples=[first, second],
    )
    rows = step_rows([group_of(talk)], TrainingConfig())
    assert rows.turn_rewards == [[0.2, 0.9]]

    batch = make_batch(
        rows,
        torch.tensor([[0.0, 3.0]]),
        loss_aggregation="token_mean",
        max_completion_length=64,
        pad_token_id=0,
        temperature=1.0,
        keep_all_rows=False,
    )

    assert batch.advantages.tolist() == [[0, 0, 0, 0, 0, 0, 0, 3]]


def test_credit_by_turn_without_turn_rewards_says_what_to_do() -> None:
    rows = step_rows([group_of(conversation((range(2), range(2, 3))))], TrainingConfig())
    rows.turn_rewards = [None]

    with pytest.raises(TrainingError, match=r"return turn_scores in its RewardResult"):
        step_advantages(rows, objective_of(TrainingConfig(credit="turn")))


def test_micro_batches_hold_every_row_once_within_the_budget() -> None:
    rows = make_rows(groups=3, generations=5)
    batch = to_batch(rows, make_advantages(rows))

    for share in (False, True):
        parts = micro_batches(batch, token_budget=150, share_prefix=share)
        assert sorted(row for part in parts for row in part.tolist()) == list(range(15))
        for part in parts:
            prefix = int(batch.shared_prefix_lengths[part].max()) if share else 0
            width = int(batch.row_lengths[part].max()) - prefix
            assert len(part) == 1 or prefix + len(part) * width <= 150
            assert not share or len(batch.group_index[part].unique()) == 1


def test_a_group_of_one_shares_nothing() -> None:
    rows = make_rows(groups=2, generations=1)

    batch = to_batch(rows, make_advantages(rows))

    assert batch.shared_prefix_lengths.tolist() == [0, 0]
