"""Scripted users: who speaks when, how many turns, and which scenarios cannot be played."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from stateset_agents.core.environment import (
    CONVERSATION_CONFIGS,
    ConversationEnvironment,
    EnvironmentState,
)
from stateset_agents.core.trajectory import ConversationTurn, StopReason
from stateset_agents.exceptions import ConfigurationError

GREETING = {"id": "greeting", "user_responses": ["Hello!", "What can you do?", "Thanks!"]}


def said(state: EnvironmentState) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in state.conversation_history]


async def play(environment: ConversationEnvironment) -> tuple[EnvironmentState, list[str | None]]:
    """Answer "ok" until the environment says done; return the end and what the user said."""
    state = await environment.reset()
    heard: list[str | None] = []
    for _ in range(20):
        state, user_response, reward, done = await environment.step(
            state, ConversationTurn("assistant", "ok")
        )
        assert reward == 0.0
        heard.append(user_response.content if user_response else None)
        if done:
            return state, heard
    raise AssertionError("the conversation does not end")


async def test_the_user_speaks_first_and_says_the_responses_in_order() -> None:
    state, heard = await play(ConversationEnvironment([GREETING], max_turns=6))
    assert heard == ["What can you do?", "Thanks!", None]
    assert said(state) == [
        ("user", "Hello!"),
        ("assistant", "ok"),
        ("user", "What can you do?"),
        ("assistant", "ok"),
        ("user", "Thanks!"),
        ("assistant", "ok"),
    ]
    assert state.stop_reason is StopReason.COMPLETED


@pytest.mark.parametrize(
    ("max_turns", "answers"), [(2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (99, 3)]
)
async def test_max_turns_counts_both_sides_and_leaves_no_user_without_an_answer(
    max_turns: int, answers: int
) -> None:
    with_policy = {**GREETING, "context": "A system message, which does not count."}
    state, heard = await play(ConversationEnvironment([with_policy], max_turns=max_turns))
    assert len(heard) == answers
    assert said(state)[-1] == ("assistant", "ok")
    expected = StopReason.COMPLETED if answers == 3 else StopReason.MAX_TURNS
    assert state.stop_reason is expected


async def test_the_context_is_the_system_message_at_the_head() -> None:
    scenario = {**GREETING, "context": "Refunds within 30 days."}
    state = await ConversationEnvironment([scenario]).reset()
    assert said(state) == [("system", "Refunds within 30 days."), ("user", "Hello!")]


async def test_a_step_leaves_the_state_it_was_given_as_it_was() -> None:
    environment = ConversationEnvironment([GREETING])
    start = await environment.reset()
    one, _, _, _ = await environment.step(start, "first answer")
    other, _, _, _ = await environment.step(start, {"role": "assistant", "content": "another"})
    assert said(start) == [("user", "Hello!")]
    assert said(one)[1] == ("assistant", "first answer")
    assert said(other)[1] == ("assistant", "another")


async def test_scenarios_come_in_order_or_in_a_seeded_shuffle_and_each_once_a_round() -> None:
    scenarios = [{"id": f"s{i}", "user_responses": ["Hi."]} for i in range(8)]

    async def two_rounds(**options: bool | int) -> list[str]:
        environment = ConversationEnvironment(scenarios, **options)  # type: ignore[arg-type]
        return [(await environment.reset()).metadata["scenario_id"] for _ in range(16)]

    in_order = [f"s{i}" for i in range(8)]
    assert await two_rounds() == in_order * 2
    shuffled = await two_rounds(randomize_scenarios=True, seed=1)
    assert sorted(shuffled[:8]) == sorted(shuffled[8:]) == in_order
    assert shuffled[:8] != in_order
    assert shuffled[:8] != shuffled[8:]
    assert shuffled == await two_rounds(randomize_scenarios=True, seed=1)


async def test_a_scenario_from_elsewhere_can_be_played() -> None:
    environment = ConversationEnvironment([GREETING])
    state = await environment.reset({"id": "held_out", "user_responses": ["Hm?"]})
    assert said(state) == [("user", "Hm?")]
    with pytest.raises(ConfigurationError, match="user_responses"):
        await environment.reset({"id": "held_out", "user_responses": []})


@pytest.mark.parametrize(
    ("scenarios", "max_turns", "problem"),
    [
        ([], 4, "there are no scenarios; at least one is needed"),
        ({"id": "a"}, 4, "scenarios is a dict; a list of mappings is needed"),
        ("greeting", 4, "scenarios is a str; a list of mappings is needed"),
        (None, 4, "scenarios is a NoneType; a list of mappings is needed"),
        ([GREETING], "4", "max_turns is '4'; a whole number is needed"),
        ([GREETING], 1, "max_turns is 1; it counts messages of both sides, so at least 2"),
    ],
)
def test_arguments_that_make_no_environment_are_named(
    scenarios: Any, max_turns: Any, problem: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ConversationEnvironment(scenarios, max_turns)
    assert caught.value.problems == (problem,)


def test_every_problem_of_every_scenario_is_in_one_message() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ConversationEnvironment(
            [
                GREETING,
                {"id": "greeting", "user_responses": ["Hi."]},
                {"user_responses": "Hi."},
                {"id": "blank", "user_responses": ["Hi.", " "], "context": 3},
            ],
            max_turns=1,
        )
    text = "\n".join(caught.value.problems)
    for part in (
        "unique",
        "scenario 2: id",
        "scenario 2: user_resp",
        "[1]",
        "context",
        "max_turns",
    ):
        assert part in text
    assert len(caught.value.problems) == 6


@pytest.mark.parametrize("domain", ["customer_service", "technical_support", "sales"])
async def test_the_shipped_conversations_of_each_domain_play_to_their_end(domain: str) -> None:
    environment = ConversationEnvironment(**CONVERSATION_CONFIGS[domain])
    for _ in environment.scenarios:
        state, _ = await play(environment)
        assert state.stop_reason is StopReason.COMPLETED


def test_the_shipped_conversations_differ_in_length_kind_difficulty_and_words() -> None:
    every = [one for config in CONVERSATION_CONFIGS.values() for one in config["scenarios"]]
    assert len({one["id"] for one in every}) == len(every)
    words = [
        set(re.findall(r"[a-z']{4,}", " ".join(one["user_responses"]).lower())) for one in every
    ]
    for first, second in itertools.combinations(words, 2):
        assert len(first & second) / len(first | second) < 0.25
    for domain, config in CONVERSATION_CONFIGS.items():
        scenarios = config["scenarios"]
        assert len(scenarios) >= 12
        assert {one["topic"] for one in scenarios} == {domain}
        assert {one["metadata"]["difficulty"] for one in scenarios} == {"easy", "medium", "hard"}
        assert len({one["metadata"]["category"] for one in scenarios}) >= 8
        assert len({len(one["user_responses"]) for one in scenarios}) >= 3
        assert len({one["context"] for one in scenarios}) == len(scenarios)


def test_a_turn_reads_like_a_message() -> None:
    turn = ConversationTurn("assistant", "Hi.")
    assert (turn["role"], turn["content"], turn.get("name", "-")) == ("assistant", "Hi.", "-")
    assert dict(turn) == {"role": "assistant", "content": "Hi."}
    with pytest.raises(KeyError):
        turn["reward"]
