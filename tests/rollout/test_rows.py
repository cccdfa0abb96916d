"""Merging: every sampled token is trained on once, in the context in which it was sampled."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stateset_agents.core.trajectory import (
    ConversationTurn,
    MultiTurnTrajectory,
    StopReason,
    TokenSample,
)
from stateset_agents.inference.engine import FinishReason
from stateset_agents.rollout.rows import Row, trajectory_rows


def sample(
    prompt: tuple[int, ...], answer: tuple[int, ...], mark: float = -1.0, turn: int = 0
) -> TokenSample:
    """Log-probs count down from `mark`, so that a misplaced one is seen."""
    logprobs = tuple(mark - position for position in range(len(answer)))
    return TokenSample(prompt, answer, logprobs, FinishReason.STOP, turn)


def trajectory(*samples: TokenSample) -> MultiTurnTrajectory:
    return MultiTurnTrajectory("t", turns=[], samples=list(samples))


# Three token ids only: then contexts often start alike by accident too.
tokens = st.lists(st.integers(0, 2), max_size=4).map(tuple)


@st.composite
def episodes(draw: st.DrawFn) -> list[TokenSample]:
    """Samples whose context is new, or carries on from any earlier sample."""
    samples: list[TokenSample] = []
    for number in range(draw(st.integers(0, 7))):
        prompt = draw(tokens)
        if samples and draw(st.booleans()):
            earlier = draw(st.sampled_from(samples))
            prompt = earlier.prompt_token_ids + earlier.token_ids + prompt
        samples.append(sample(prompt, draw(tokens), mark=-100.0 * (number + 1)))
    return samples


def holds(row: Row, part: TokenSample) -> bool:
    start, end = len(part.prompt_token_ids), len(part.prompt_token_ids) + len(part.token_ids)
    return (
        row.token_ids[:end] == part.prompt_token_ids + part.token_ids
        and row.loss_mask[start:end] == (True,) * (end - start)
        and row.sampling_logprobs[start:end] == part.logprobs
    )


@given(episodes())
def test_as_many_tokens_are_trained_on_as_were_sampled_each_in_its_own_context(
    samples: list[TokenSample],
) -> None:
    rows = trajectory_rows(trajectory(*samples))
    assert sum(sum(row.loss_mask) for row in rows) == sum(len(s.token_ids) for s in samples)
    for row in rows:
        assert len(row.token_ids) == len(row.loss_mask) == len(row.sampling_logprobs)
        unsampled = [
            logprob
            for logprob, sampled in zip(row.sampling_logprobs, row.loss_mask, strict=True)
            if not sampled
        ]
        assert not any(unsampled)
    for part in samples:
        assert any(holds(row, part) for row in rows)


def test_a_conversation_whose_history_was_kept_is_one_row() -> None:
    rows = trajectory_rows(
        trajectory(sample((1, 2), (3, 4), mark=-1.0), sample((1, 2, 3, 4, 5, 6), (7,), mark=-9.0))
    )
    assert rows == [
        Row(
            token_ids=(1, 2, 3, 4, 5, 6, 7),
            loss_mask=(False, False, True, True, False, False, True),
            sampling_logprobs=(0.0, 0.0, -1.0, -2.0, 0.0, 0.0, -9.0),
            turn_index=(-1, -1, 0, 0, -1, -1, 0),
        )
    ]


def test_a_rewritten_history_starts_a_new_row_and_later_turns_extend_that_one() -> None:
    rows = trajectory_rows(
        trajectory(sample((1,), (2,)), sample((8, 2), (3,)), sample((8, 2, 3, 4), (5,)))
    )
    assert [row.token_ids for row in rows] == [(1, 2), (8, 2, 3, 4, 5)]


def test_two_answers_to_one_context_are_two_rows() -> None:
    rows = trajectory_rows(trajectory(sample((1,), (2,)), sample((1,), (2,))))
    assert [row.token_ids for row in rows] == [(1, 2), (1, 2)]


def test_of_two_rows_that_fit_the_longer_is_extended() -> None:
    rows = trajectory_rows(
        trajectory(sample((1,), (2,)), sample((1,), (2, 3)), sample((1, 2, 3, 4), (5,)))
    )
    assert [row.token_ids for row in rows] == [(1, 2), (1, 2, 3, 4, 5)]
    assert rows[1].loss_mask == (False, True, True, False, True)


def test_tokens_know_the_turn_that_they_were_sampled_for() -> None:
    drafted, said, second = sample((1,), (2,)), sample((1,), (3,)), sample((1, 3, 4), (5,), turn=1)
    unspoken = sample((1, 3, 4, 5, 6), (7,), turn=2)
    talk = trajectory(drafted, said, second, unspoken)
    talk.turns = [
        ConversationTurn("assistant", "first", sample=said),
        ConversationTurn("user", "and?"),
        ConversationTurn("assistant", "second", sample=second),
    ]
    rows = trajectory_rows(talk)
    assert [row.turn_index for row in rows] == [(-1, 0), (-1, 0, -1, 1, -1, 1)]


def test_a_failed_trajectory_has_no_rows() -> None:
    failed = trajectory(sample((1,), (2,)))
    failed.stop_reason = StopReason.FAILED
    assert trajectory_rows(failed) == []
