"""Conversation memory: what is told in later conversations, what is summed up, what forgotten."""

from __future__ import annotations

import pytest

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.core.memory import ConversationMemory
from stateset_agents.core.recorder import EpisodeRecorder, recording
from stateset_agents.core.trajectory import Message
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.inference.stub_engine import StubEngine
from stateset_agents.rollout.collect import collect_groups


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def agent_with(memory: ConversationMemory, responses: list[str]) -> MultiTurnAgent:
    config = AgentConfig(model_name="stub://demo", use_stub_model=True, system_prompt="Be kind.")
    return MultiTurnAgent(config, StubEngine(responses), memory=memory)


async def seen_by(agent: MultiTurnAgent, messages: list[Message]) -> str:
    """The prompt for these messages, as an episode would send it: reading, not writing."""
    recorder = EpisodeRecorder("c", seed=0)
    with recording(recorder):
        await agent.generate_response(messages)
    text: str = agent.tokenizer.hf.decode(list(recorder.samples[0].prompt_token_ids))
    return text


async def test_a_later_conversation_is_told_what_an_earlier_one_said() -> None:
    agent = agent_with(ConversationMemory(), ["Hello Ann."])

    await agent.generate_response([user("I am Ann.")])
    prompt = await seen_by(agent, [user("Who am I?")])

    assert prompt.startswith(
        "<|im_start|>system\nBe kind.\n\nWhat was said in earlier conversations with this user:\n"
        "user: I am Ann.\nassistant: Hello Ann.<|im_end|>\n<|im_start|>user\nWho am I?"
    )


async def test_a_conversation_that_goes_on_is_not_told_twice() -> None:
    agent = agent_with(ConversationMemory(), ["Hello Ann."])

    answer = await agent.generate_response([user("I am Ann.")])
    prompt = await seen_by(agent, [user("I am Ann."), assistant(answer), user("Who am I?")])

    assert prompt.count("I am Ann.") == 1
    assert "earlier conversations" not in prompt


def test_turns_beyond_the_most_are_forgotten_oldest_first() -> None:
    memory = ConversationMemory(max_turns=3, summarization_threshold=None)
    memory.remember([user("one")], "1")
    memory.remember([user("two")], "2")
    memory.remember([user("three")], "3")

    assert memory.recall([user("new")]).splitlines()[1:] == [
        "assistant: 2",
        "user: three",
        "assistant: 3",
    ]


async def test_beyond_the_threshold_all_but_the_newest_half_is_summed_up_by_the_model() -> None:
    memory = ConversationMemory(max_turns=10, summarization_threshold=4)
    agent = agent_with(memory, ["a1", "a2", "a3", "a4", "They asked four things.", "a5"])

    for number in (1, 2, 3, 4):
        await agent.generate_response([user(f"q{number}")])

    # the fourth closed the third: six closed turns, of which the newest two stay
    assert memory.summary == "They asked four things."
    assert [turn["content"] for turn in memory.turns] == ["q3", "a3", "q4", "a4"]
    assert "They asked four things." in memory.recall([user("q5")])


async def test_episodes_read_the_memory_and_leave_it_as_it_is() -> None:
    memory = ConversationMemory()
    agent = agent_with(memory, ["An answer."])
    await agent.generate_response([user("I am Ann.")])
    before = memory.turns
    environment = ConversationEnvironment(
        scenarios=[{"id": "s", "user_responses": ["Who am I?", "Sure?"]}], max_turns=4
    )

    (group,) = await collect_groups(
        agent, environment, environment.scenarios, num_generations=2, seed=0
    )

    assert memory.turns == before
    for trajectory in group.trajectories:
        prompt = agent.tokenizer.decode(trajectory.samples[0].prompt_token_ids)
        assert "I am Ann." in prompt


def test_clearing_forgets_everything() -> None:
    memory = ConversationMemory()
    memory.remember([user("one")], "1")
    memory.clear()
    assert memory.turns == []
    assert memory.recall([user("new")]) == ""


def test_limits_that_contradict_each_other_are_named() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ConversationMemory(max_turns=0, summarization_threshold=50)
    assert len(caught.value.problems) == 2


def test_limits_of_the_wrong_type_are_named() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ConversationMemory(max_turns="10", summarization_threshold=2.5)  # type: ignore[arg-type]
    assert caught.value.problems == (
        "max_turns is '10'; a whole number is needed",
        "summarization_threshold is 2.5; a whole number is needed",
    )
