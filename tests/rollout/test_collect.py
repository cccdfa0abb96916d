"""Rollout: names, order, independence of episodes, and what failure means."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from typing import Any

import pytest

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.core.environment import (
    ConversationEnvironment,
    Environment,
    EnvironmentState,
)
from stateset_agents.core.trajectory import MultiTurnTrajectory, StopReason
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.inference.stub_engine import StubEngine
from stateset_agents.rollout.collect import collect_groups
from stateset_agents.rollout.rows import trajectory_rows

SCENARIOS: list[dict[str, Any]] = [
    {"id": "greeting", "user_responses": ["Hello!", "What can you do?"]},
    {"id": "parcel", "user_responses": ["Where is it?"], "context": "Ask for the number."},
]
CONFIG = AgentConfig(model_name="stub://demo", use_stub_model=True, max_new_tokens=64)


def environment() -> ConversationEnvironment:
    return ConversationEnvironment(SCENARIOS, max_turns=6)


def stub(kind: type[MultiTurnAgent] = MultiTurnAgent, **options: Any) -> MultiTurnAgent:
    return kind(CONFIG, engine=StubEngine(["Yes.", "No.", "Perhaps."], **options))


class Guides(Environment):
    """The custom environment of the guide: it starts with nothing said, and chooses its task."""

    def __init__(self, tasks: list[str]) -> None:
        self.tasks = tasks

    async def reset(self, scenario: Any = None) -> EnvironmentState:
        task = scenario or random.choice(self.tasks)
        return EnvironmentState(
            conversation_history=[], metadata={"task": task, "completed": False}
        )

    async def step(self, state: EnvironmentState, action: Any) -> Any:
        new_history = [*state.conversation_history, action]
        completed = "Yes" in action.content
        done = completed or len(new_history) >= 10
        user_response = {"role": "user", "content": f"And {state.metadata['task']}?"}
        new_state = EnvironmentState(
            conversation_history=[*new_history, user_response],
            metadata={**state.metadata, "completed": completed},
        )
        return new_state, user_response, 1.0 if completed else 0.0, done


async def test_groups_and_trajectories_come_in_order_with_names_that_say_where_they_are_from() -> (
    None
):
    ended: list[str] = []
    groups = await collect_groups(
        stub(),
        environment(),
        [*SCENARIOS, SCENARIOS[0]],
        num_generations=2,
        seed=1,
        step=3,
        on_episode=lambda trajectory: ended.append(trajectory.trajectory_id),
    )
    names = [[t.trajectory_id for t in group.trajectories] for group in groups]
    assert names == [
        ["step-3/greeting/0", "step-3/greeting/1"],
        ["step-3/parcel/0", "step-3/parcel/1"],
        ["step-3/greeting~1/0", "step-3/greeting~1/1"],
    ]
    assert sorted(ended) == sorted(itertools.chain(*names))
    assert [group.scenario for group in groups] == [*SCENARIOS, SCENARIOS[0]]
    for group in groups:
        assert {t.trajectory_group_id for t in group.trajectories} == {group.group_id}
    seeds = [t.metadata["seed"] for group in groups for t in group.trajectories]
    assert len(set(seeds)) == 6


async def test_turns_are_the_conversation_and_each_answer_has_its_sample() -> None:
    groups = await collect_groups(stub(), environment(), [SCENARIOS[1]], num_generations=1, seed=1)
    (trajectory,) = groups[0].trajectories
    assert [(turn.role, turn.content) for turn in trajectory.turns] == [
        ("system", "Ask for the number."),
        ("user", "Where is it?"),
        ("assistant", "Yes."),
    ]
    assert trajectory.turns[2].sample is trajectory.samples[0]
    assert trajectory.stop_reason is StopReason.COMPLETED


async def test_an_agent_that_raises_is_data_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Fragile(MultiTurnAgent):
        async def generate_response(self, messages):  # type: ignore[no-untyped-def]
            if messages[-1]["content"] == "What can you do?":
                raise RuntimeError("the tool is away")
            return await super().generate_response(messages)

    with caplog.at_level(logging.WARNING):
        groups = await collect_groups(
            stub(Fragile), environment(), SCENARIOS, num_generations=2, seed=1
        )
    for trajectory in groups[0].trajectories:
        assert trajectory.stop_reason is StopReason.FAILED
        assert trajectory.error == "RuntimeError: the tool is away"
        assert [turn.role for turn in trajectory.turns] == ["user", "assistant", "user"]
        assert len(trajectory.samples) == 1
        assert trajectory_rows(trajectory) == []
    assert not any(trajectory.failed for trajectory in groups[1].trajectories)
    assert "the tool is away" in caplog.text


async def test_an_environment_that_raises_is_data() -> None:
    class Broken(ConversationEnvironment):
        async def step(self, state, action):  # type: ignore[no-untyped-def]
            raise KeyError("state")

    groups = await collect_groups(stub(), Broken(SCENARIOS), SCENARIOS, num_generations=1, seed=1)
    assert [t.error for group in groups for t in group.trajectories] == ["KeyError: 'state'"] * 2


@pytest.mark.parametrize("answer", [None, 3, {"role": "assistant", "content": "Hi."}])
async def test_an_agent_that_answers_no_text_has_failed(answer: object) -> None:
    class Odd(MultiTurnAgent):
        async def generate_response(self, messages):  # type: ignore[no-untyped-def]
            return answer

    groups = await collect_groups(stub(Odd), environment(), SCENARIOS, num_generations=1, seed=1)
    assert "must return text" in str(groups[0].trajectories[0].error)


@pytest.mark.parametrize("fatal", [KeyboardInterrupt, asyncio.CancelledError])
def test_an_interrupt_is_not_a_failed_episode(fatal: type[BaseException]) -> None:
    class Interrupted(MultiTurnAgent):
        async def generate_response(self, messages):  # type: ignore[no-untyped-def]
            raise fatal

    async def roll() -> None:
        await collect_groups(stub(Interrupted), environment(), SCENARIOS, num_generations=2, seed=1)

    with pytest.raises(fatal):
        asyncio.run(roll())


async def test_a_wrong_configuration_stops_the_rollout_at_once() -> None:
    with pytest.raises(ConfigurationError, match="initialize"):
        await collect_groups(
            MultiTurnAgent(CONFIG), environment(), SCENARIOS, num_generations=2, seed=1
        )
    with pytest.raises(ConfigurationError, match="num_generations is 0"):
        await collect_groups(stub(), environment(), SCENARIOS, num_generations=0, seed=1)


async def test_a_full_context_ends_the_episode_and_keeps_what_was_said() -> None:
    # The stub's tokens are bytes: the prompts have 25 and 66, each asks for 64 more.
    groups = await collect_groups(
        stub(max_context_tokens=100), environment(), [SCENARIOS[0]], num_generations=1, seed=1
    )
    (trajectory,) = groups[0].trajectories
    assert trajectory.stop_reason is StopReason.CONTEXT_FULL
    assert [turn.role for turn in trajectory.turns] == ["user", "assistant"]
    assert len(trajectory_rows(trajectory)) == 1


async def test_a_first_prompt_that_never_fits_has_failed() -> None:
    groups = await collect_groups(
        stub(max_context_tokens=70), environment(), [SCENARIOS[0]], num_generations=1, seed=1
    )
    assert "ContextLengthError" in str(groups[0].trajectories[0].error)


async def test_the_guides_environment_plays_and_chooses_one_task_for_a_group() -> None:
    agent = MultiTurnAgent(
        CONFIG.model_copy(update={"system_prompt": "Be kind."}), StubEngine(["No.", "Yes."])
    )
    tasks = [f"task {number}" for number in range(50)]
    groups = await collect_groups(agent, Guides(tasks), [None, None], num_generations=3, seed=1)
    for group in groups:
        said = {turn.content for t in group.trajectories for turn in t.turns if turn.role == "user"}
        assert len(said) == 1
        for trajectory in group.trajectories:
            assert trajectory.turns[0].role == "assistant"
            last = trajectory.assistant_turns[-1]
            assert (last.content, last.metadata["environment_reward"]) == ("Yes.", 1.0)


async def test_an_environment_that_changes_its_state_in_place_does_not_mix_a_groups_episodes() -> (
    None
):
    class InPlace(Guides):
        async def step(self, state: EnvironmentState, action: Any) -> Any:
            state.conversation_history += [action, {"role": "user", "content": "And?"}]
            return state, "And?", 0.0, len(state.conversation_history) >= 4

    agent = MultiTurnAgent(CONFIG.model_copy(update={"system_prompt": "Be kind."}), StubEngine())
    groups = await collect_groups(agent, InPlace(["task"]), [None], num_generations=3, seed=1)
    for trajectory in groups[0].trajectories:
        assert [turn.role for turn in trajectory.turns] == ["assistant", "user"] * 2


async def test_the_engine_is_told_which_conversations_have_ended() -> None:
    class Counting(MultiTurnAgent):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.released: list[str] = []

        def release(self, conversation_id: str) -> None:
            self.released.append(conversation_id)
            super().release(conversation_id)

    agent = stub(Counting)
    assert isinstance(agent, Counting)
    for _ in range(2):
        await collect_groups(agent, environment(), SCENARIOS, num_generations=3, seed=1)
    assert len(agent.released) == len(set(agent.released)) == 12


async def test_every_episode_keeps_its_own_record_while_others_run() -> None:
    class Slow(MultiTurnAgent):
        async def generate_response(self, messages):  # type: ignore[no-untyped-def]
            await asyncio.sleep(0.001 * random.random())
            answer = await super().generate_response(messages)
            await asyncio.sleep(0.001 * random.random())
            return answer

    def check(trajectory: MultiTurnTrajectory) -> None:
        for sample, turn in zip(trajectory.samples, trajectory.assistant_turns, strict=True):
            assert turn.sample is sample
            assert agent.tokenizer.decode(sample.token_ids) == turn.content
        assert len(trajectory_rows(trajectory)) == 1

    agent = stub(Slow)
    groups = await collect_groups(agent, environment(), SCENARIOS, num_generations=8, seed=1)
    for group in groups:
        for trajectory in group.trajectories:
            assert not trajectory.failed
            check(trajectory)


class GoesOn(Guides):
    async def step(self, state: EnvironmentState, action: Any) -> Any:
        return (*(await super().step(state, action))[:3], False)


class GoesOnForLong(GoesOn):
    max_turns = 240


class GivesFive(Guides):
    async def step(self, state: EnvironmentState, action: Any) -> Any:
        return (*(await super().step(state, action)), {})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (GoesOn, "GoesOn did not end the conversation in 200 answers; its step() must return done"),
        (
            GoesOnForLong,
            "GoesOnForLong did not end the conversation in 240 answers; its step()",
        ),
        (GivesFive, "it must return four: (new_state, user_response, reward, done)"),
    ],
)
async def test_an_environment_that_cannot_be_played_fails_its_episodes_with_one_message(
    kind: type[Guides], message: str
) -> None:
    agent = MultiTurnAgent(
        CONFIG.model_copy(update={"system_prompt": "Be kind.", "max_new_tokens": 8}),
        StubEngine(["No."]),
    )
    (group,) = await collect_groups(agent, kind(["a"]), [None], num_generations=1, seed=0)
    (trajectory,) = group.trajectories
    assert trajectory.failed
    assert trajectory.error is not None
    assert message in trajectory.error


async def test_a_conversation_is_as_long_as_its_environment_says() -> None:
    long = {"id": "long", "user_responses": ["Hm?"] * 210}
    agent = MultiTurnAgent(CONFIG.model_copy(update={"max_new_tokens": 8}), StubEngine(["No."]))
    environment = ConversationEnvironment([long], max_turns=420)
    (group,) = await collect_groups(agent, environment, [long], num_generations=1, seed=0)
    (trajectory,) = group.trajectories
    assert trajectory.stop_reason is StopReason.COMPLETED
    assert len(trajectory.samples) == 210
