"""Compressed contexts: what is kept, to the token, and that training sees what the model saw."""

from __future__ import annotations

import pytest

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.core.context_compression import (
    SHORTEST_SUMMARY,
    length,
    slide,
    summarise,
    summary_request,
    truncate,
)
from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.core.recorder import EpisodeRecorder, recording
from stateset_agents.core.trajectory import Message
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.inference.stub_engine import ByteTokenizer, StubEngine
from stateset_agents.rollout.collect import collect_groups
from stateset_agents.rollout.rows import trajectory_rows

TOKENIZER = ChatTokenizer(ByteTokenizer())
SYSTEM = {"role": "system", "content": "Be kind."}


def said(*texts: str) -> list[Message]:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


TALK = [SYSTEM, *said("first " * 20, "answer one " * 9, "second " * 9, "answer two " * 6, "last?")]


def test_a_window_starts_at_the_oldest_user_message_from_which_all_fits() -> None:
    window = [SYSTEM, *TALK[3:]]
    budget = length(window, TOKENIZER)

    assert slide(TALK, TOKENIZER, budget) == window
    # one token less, and a whole exchange has to go
    assert slide(TALK, TOKENIZER, budget - 1) == [SYSTEM, TALK[-1]]


def test_truncation_keeps_the_newest_tokens_and_uses_the_budget_to_the_last() -> None:
    budget = length([SYSTEM, *TALK[3:]], TOKENIZER) + 10

    kept = truncate(TALK, TOKENIZER, budget)

    # ten tokens are no room for the next message and its frame; with more, its end is kept
    assert kept == [SYSTEM, *TALK[3:]]
    kept = truncate(TALK, TOKENIZER, budget + 60)
    assert length(kept, TOKENIZER) == budget + 60
    # an assistant's message would come first: a stand-in for what was left out precedes it
    assert [message["role"] for message in kept] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert kept[1]["content"] == "[...]"
    assert TALK[2]["content"].endswith(kept[2]["content"])
    assert 0 < len(kept[2]["content"]) < len(TALK[2]["content"])


def test_a_truncation_never_leaves_half_of_a_character() -> None:
    talk = [SYSTEM, *said("ü" * 40, "yes", "last?")]
    base = length([SYSTEM, *said("", "yes", "last?")], TOKENIZER)

    for budget in (base + 20, base + 21):  # two bytes a letter
        assert truncate(talk, TOKENIZER, budget)[1]["content"] == "ü" * 10


@pytest.mark.parametrize("strategy", [slide, truncate])
def test_system_message_and_last_user_turn_are_kept_whatever_they_take(strategy) -> None:  # type: ignore[no-untyped-def]
    assert strategy(TALK, TOKENIZER, 1) == [SYSTEM, TALK[-1]]
    without_system = TALK[1:]
    assert strategy(without_system, TOKENIZER, 1) == [TALK[-1]]


async def test_a_summary_takes_the_place_of_what_the_window_leaves_out() -> None:
    asked: list[tuple[str, int]] = []

    async def ask(request: list[Message], max_tokens: int) -> str:
        asked.append((request[0]["content"], max_tokens))
        return "Order 4711 is late."

    budget = 200
    kept = await summarise(TALK, TOKENIZER, budget, ask, max_request_tokens=10_000)

    assert kept == [
        {
            "role": "system",
            "content": "Be kind.\n\nThe conversation so far: Order 4711 is late.",
        },
        TALK[-1],
    ]
    ((request, max_tokens),) = asked
    for message in TALK[1:-1]:
        assert f"{message['role']}: {message['content']}" in request
    assert TALK[-1]["content"] not in request
    frame = length(
        [{"role": "system", "content": "Be kind.\n\nThe conversation so far: "}, TALK[-1]],
        TOKENIZER,
    )
    assert max_tokens == budget - frame


async def test_a_summary_without_a_system_message_opens_the_first_user_message() -> None:
    async def ask(_request: list[Message], _max_tokens: int) -> str:
        return "Short."

    kept = await summarise(TALK[1:], TOKENIZER, 150, ask, max_request_tokens=10_000)

    assert kept == [{"role": "user", "content": "The conversation so far: Short.\n\nlast?"}]


async def test_a_summary_that_turns_out_longer_is_cut_to_the_budget() -> None:
    async def ask(_request: list[Message], max_tokens: int) -> str:
        return "é" * max_tokens  # twice as many bytes as allowed

    kept = await summarise(TALK, TOKENIZER, 201, ask, max_request_tokens=10_000)

    assert 199 <= length(kept, TOKENIZER) <= 201
    assert "\ufffd" not in kept[0]["content"]


async def test_no_summary_is_asked_for_where_there_is_no_room_for_one() -> None:
    async def ask(_request: list[Message], _max_tokens: int) -> str:
        raise AssertionError("not to be asked")

    frame = length(
        [{"role": "system", "content": "Be kind.\n\nThe conversation so far: "}, TALK[-1]],
        TOKENIZER,
    )
    budget = frame + SHORTEST_SUMMARY - 1

    kept = await summarise(TALK, TOKENIZER, budget, ask, max_request_tokens=10_000)

    assert kept == [SYSTEM, TALK[-1]]


def test_a_request_for_a_summary_leaves_out_the_oldest_words_that_do_not_fit() -> None:
    whole = summary_request(TALK[1:], TOKENIZER, 10_000)
    most = length(whole, TOKENIZER) - 30

    (request,) = summary_request(TALK[1:], TOKENIZER, most)

    assert length([request], TOKENIZER) == most
    assert request["content"].endswith("user: last?")


# --- the agent -----------------------------------------------------------------------------------


def stub_agent(**settings: object) -> MultiTurnAgent:
    config = AgentConfig(
        model_name="stub://demo",
        use_stub_model=True,
        max_new_tokens=60,
        enable_context_compression=True,
        **settings,  # type: ignore[arg-type]
    )
    return MultiTurnAgent(config, StubEngine(["Summed up.", "An answer."]))


@pytest.mark.parametrize("strategy", ["summary", "truncate", "sliding_window"])
@pytest.mark.parametrize("ratio", [0.4, 0.7])
async def test_the_context_keeps_the_share_that_the_ratio_says(strategy: str, ratio: float) -> None:
    limit = length(TALK, TOKENIZER) - 1
    agent = stub_agent(
        compression_strategy=strategy, compression_ratio=ratio, max_context_tokens=limit
    )
    recorder = EpisodeRecorder("c", seed=1)

    with recording(recorder):
        await agent.generate_response(TALK)

    seen = recorder.samples[-1].prompt_token_ids
    assert len(seen) <= ratio * limit
    if strategy == "truncate":
        # less only by what the frame of one more message takes
        assert len(seen) > ratio * limit - 60
    assert len(recorder.samples) == (2 if strategy == "summary" else 1)


async def test_a_context_within_the_limit_is_left_alone() -> None:
    agent = stub_agent(max_context_tokens=length(TALK, TOKENIZER))
    recorder = EpisodeRecorder("c", seed=1)

    with recording(recorder):
        await agent.generate_response(TALK)

    assert list(recorder.samples[0].prompt_token_ids) == TOKENIZER.render(TALK)


async def test_without_compression_nothing_is_left_out() -> None:
    agent = stub_agent(max_context_tokens=10)
    agent.config.enable_context_compression = False
    recorder = EpisodeRecorder("c", seed=1)

    with recording(recorder):
        await agent.generate_response(TALK)

    assert list(recorder.samples[0].prompt_token_ids) == TOKENIZER.render(TALK)


@pytest.mark.parametrize("strategy", ["summary", "truncate", "sliding_window"])
async def test_training_gets_a_new_row_from_each_compression_on(strategy: str) -> None:
    agent = stub_agent(compression_strategy=strategy, max_context_tokens=150)
    environment = ConversationEnvironment(
        scenarios=[{"id": "long", "user_responses": [f"Question {n} " * 4 for n in range(6)]}],
        max_turns=12,
    )

    (group,) = await collect_groups(
        agent, environment, environment.scenarios, num_generations=1, seed=0
    )
    (trajectory,) = group.trajectories
    rows = trajectory_rows(trajectory)

    assert not trajectory.failed
    assert len(trajectory.assistant_turns) == 6
    assert len(rows) > 2
    # every sampled token is in exactly one row, after the context in which it was sampled
    assert sum(sum(row.loss_mask) for row in rows) == sum(
        len(sample.token_ids) for sample in trajectory.samples
    )
    for sample in trajectory.samples:
        tokens = (*sample.prompt_token_ids, *sample.token_ids)
        assert any(row.token_ids[: len(tokens)] == tokens for row in rows)
    # what the environment and the rewards see is the whole conversation
    assert [turn.role for turn in trajectory.turns] == ["user", "assistant"] * 6
    # all of it was asked of one turn or another
    assert {turn for row in rows for turn in row.turn_index} == {-1, 0, 1, 2, 3, 4, 5}


async def test_a_compressed_conversation_goes_on_from_the_compressed_context() -> None:
    agent = stub_agent(
        compression_strategy="sliding_window", max_context_tokens=length(TALK, TOKENIZER) - 1
    )
    recorder = EpisodeRecorder("c", seed=1)

    with recording(recorder):
        answer = await agent.generate_response(TALK)
        await agent.generate_response(
            [*TALK, {"role": "assistant", "content": answer}, *said("And now?")]
        )

    first, second = recorder.samples
    seen = (*first.prompt_token_ids, *first.token_ids)
    assert second.prompt_token_ids[: len(seen)] == seen


def test_an_unknown_strategy_and_a_ratio_that_keeps_nothing_are_both_named() -> None:
    with pytest.raises(ConfigurationError) as caught:
        AgentConfig(model_name="m", compression_strategy="zip", compression_ratio=0.0)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "compression_strategy" in text
    assert "sliding_window" in text
    assert "compression_ratio" in text
