"""What is wrong with an environment is told, each kind by its own name."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from stateset_agents.core.environment import (
    CONVERSATION_CONFIGS,
    ConversationEnvironment,
    Environment,
    EnvironmentState,
)
from stateset_agents.core.environment_check import EnvironmentReport, check_environment
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.exceptions import ConfigurationError


class Counting(Environment):
    """As it should be: two answers, and a user who says how many there were."""

    async def reset(self, scenario: Any = None) -> Any:
        opening = ConversationTurn("user", "Count.")
        return EnvironmentState([opening], {"num": 0}, scenario)

    async def step(self, state: EnvironmentState, action: Any) -> Any:
        number = state.metadata["num"] + 1
        user = {"role": "user", "content": f"{number}."}
        history = [*state.conversation_history, action, user]
        new = replace(state, conversation_history=history, metadata={"num": number})
        return new, user, 0.5, number == 2


class NeverEnds(Counting):
    async def step(self, state: EnvironmentState, action: Any) -> Any:
        return (*(await super().step(state, action))[:3], False)


class RaisesInStep(Counting):
    async def step(self, state: EnvironmentState, action: Any) -> Any:
        raise KeyError("task")


class ChoosesFromNothing(Counting):
    async def reset(self, scenario: Any = None) -> Any:
        return await super().reset(random.choice([]))


class FiveValues(Counting):
    async def step(self, state: EnvironmentState, action: Any) -> Any:
        return (*(await super().step(state, action)), {})


class NoTuple(Counting):
    async def step(self, state: EnvironmentState, action: Any) -> Any:
        return (await super().step(state, action))[0]


class ChangesItsState(Counting):
    async def step(self, state: EnvironmentState, action: Any) -> Any:
        state.conversation_history.append(action)
        return (*(await super().step(state, action))[:3], True)


class ChangesItsScenario(Counting):
    scenarios = ({"id": "a", "left": ["x", "y", "z"]},)

    async def step(self, state: EnvironmentState, action: Any) -> Any:
        state.scenario["left"].pop()  # type: ignore[index]
        return (*(await super().step(replace(state), action))[:3], True)


class UserSpeaksAsAssistant(Counting):
    async def step(self, state: EnvironmentState, action: Any) -> Any:
        new, user, reward, done = await super().step(state, action)
        return new, {**user, "role": "assistant"}, reward, done


class StartsWithAnAnswer(Counting):
    async def reset(self, scenario: Any = None) -> Any:
        state = await super().reset(scenario)
        return replace(
            state, conversation_history=[ConversationTurn("assistant", "Welcome, count.")]
        )


class KeepsTheAnswerToItself(Counting):
    async def step(self, state: EnvironmentState, action: Any) -> Any:
        new, user, reward, done = await super().step(state, action)
        return replace(new, conversation_history=[user]), user, reward, done


class UserUnheard(Counting):
    async def step(self, state: EnvironmentState, action: Any) -> Any:
        new, user, reward, done = await super().step(state, action)
        return replace(new, conversation_history=new.conversation_history[:-1]), user, reward, done


class NobodyAnswers(Counting):
    async def step(self, state: EnvironmentState, action: Any) -> Any:
        new, _, reward, done = await super().step(state, action)
        return replace(new, conversation_history=new.conversation_history[:-1]), None, reward, done


class Unpredictable(Counting):
    async def step(self, state: EnvironmentState, action: Any) -> Any:
        new, user, _, done = await super().step(state, action)
        return new, user, random.SystemRandom().random(), done


class RewardIsText(Counting):
    async def step(self, state: EnvironmentState, action: Any) -> Any:
        new, user, _, done = await super().step(state, action)
        return new, user, "good", done


class DoneIsNone(Counting):
    async def step(self, state: EnvironmentState, action: Any) -> Any:
        new, user, reward, done = await super().step(state, action)
        return new, user, reward, done or None


class Plain(Counting):
    def reset(self, scenario: Any = None) -> Any:  # type: ignore[override]
        return EnvironmentState([])


class GivesADict(Counting):
    async def reset(self, scenario: Any = None) -> Any:
        return {"conversation_history": []}


class Sleeps(Counting):
    async def step(self, state: EnvironmentState, action: Any) -> Any:
        await asyncio.sleep(60)


class EmptyScenarios(Counting):
    def __init__(self) -> None:
        self.scenarios = []


class SameIdTwice(Counting):
    scenarios = ({"id": "a"}, {"id": "a"}, "b", {})  # type: ignore[assignment]


async def report_of(environment: Environment, **options: Any) -> EnvironmentReport:
    return await check_environment(environment, **{"timeout_seconds": 0.5, **options})


@pytest.mark.parametrize(
    ("kind", "codes"),
    [
        (NeverEnds, {"never_ends"}),
        (RaisesInStep, {"raises"}),
        (ChoosesFromNothing, {"raises"}),
        (FiveValues, {"wrong_result"}),
        (NoTuple, {"wrong_result"}),
        (ChangesItsState, {"state_changed"}),
        (ChangesItsScenario, {"scenario_changed", "state_changed"}),
        (UserSpeaksAsAssistant, {"role_out_of_place", "user_missing"}),
        (StartsWithAnAnswer, {"role_out_of_place"}),
        (KeepsTheAnswerToItself, {"answer_missing"}),
        (UserUnheard, {"user_missing"}),
        (NobodyAnswers, {"nobody_spoke"}),
        (RewardIsText, {"wrong_reward"}),
        (DoneIsNone, {"wrong_done"}),
        (Plain, {"not_async"}),
        (GivesADict, {"wrong_state"}),
        (Sleeps, {"too_slow"}),
        (EmptyScenarios, {"no_scenarios"}),
        (SameIdTwice, {"scenario_id_repeated", "scenario_no_mapping", "scenario_without_id"}),
    ],
)
async def test_each_kind_of_mistake_is_found_and_nothing_else(
    kind: type[Counting], codes: set[str]
) -> None:
    report = await report_of(kind())
    assert {finding.check for finding in report.findings} == codes
    assert not report.ok
    with pytest.raises(ConfigurationError) as caught:
        report.raise_errors()
    assert str(caught.value.problems[0]) in str(report)


async def test_a_finding_says_where_what_and_what_is_needed() -> None:
    (finding,) = (await report_of(RaisesInStep(), scenarios=[{"id": "s7"}])).findings
    assert finding.message == "scenario 's7': step 1: step() raised KeyError: 'task'"
    (finding,) = (await report_of(FiveValues())).findings
    assert finding.message == (
        "the environment's own choice: step 1: step() returned 5 values; four are needed: "
        "(new_state, user_response, reward, done)"
    )
    (finding,) = (await report_of(NeverEnds(), max_answers=7)).findings
    assert "not done after 7 answers" in finding.message


async def test_what_may_be_meant_is_a_warning() -> None:
    report = await report_of(Unpredictable())
    assert report.ok
    assert [(one.check, one.level) for one in report.findings] == [("not_deterministic", "warning")]
    report.raise_errors()


@pytest.mark.parametrize("domain", ["customer_service", "technical_support", "sales"])
async def test_nothing_is_found_in_what_ships(domain: str) -> None:
    environment = ConversationEnvironment(**CONVERSATION_CONFIGS[domain])
    report = await check_environment(environment)
    assert report.findings == ()
    assert report.num_conversations == 10
    assert str(report) == "ConversationEnvironment, 10 conversations played: nothing found"


async def test_a_check_leaves_environment_and_random_numbers_as_they_were() -> None:
    scenarios = [{"id": name, "user_responses": ["Hi."]} for name in "abcdef"]
    checked, other = (
        ConversationEnvironment(scenarios, randomize_scenarios=True, seed=3) for _ in range(2)
    )
    random.seed(5)
    await check_environment(checked, scenarios=[None, scenarios[0]])  # type: ignore[list-item]
    assert random.random() == random.Random(5).random()
    orders = [
        [(await one.reset()).metadata["scenario_id"] for _ in range(6)] for one in (checked, other)
    ]
    assert orders[0] == orders[1]
