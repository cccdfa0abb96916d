"""Environments: who talks to the agent, and when a conversation ends.

Owns the base class, the environment of scripted users, and the shipped conversations. It does not
know models, tokens or rewards.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stateset_agents.core.conversation_configs import CONVERSATION_CONFIGS
from stateset_agents.core.trajectory import ConversationTurn, Message, StopReason, to_turn
from stateset_agents.exceptions import ConfigurationError

__all__ = [
    "CONVERSATION_CONFIGS",
    "ConversationEnvironment",
    "Environment",
    "EnvironmentState",
]

Scenario = dict[str, Any]
# What `step` gives: the new state, what the user says next (None: nothing), the environment's own
# reward of the action, and whether the conversation has ended.
StepResult = tuple["EnvironmentState", "ConversationTurn | Message | str | None", float, bool]


@dataclass(slots=True)
class EnvironmentState:
    """One conversation as it stands. All that an episode needs is here, so that one environment can
    play many episodes at once.

    `conversation_history` is what the agent sees, oldest first. `stop_reason` says why the
    conversation ended, once it has; None then means that it came to its end.
    """

    conversation_history: list[Any] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    scenario: Scenario | None = None
    stop_reason: StopReason | None = None


class Environment(ABC):
    """Base of all environments. Subclass it and write `reset` and `step`.

    Episodes run side by side on one environment: keep what belongs to an episode in its state.
    `scenarios` are those that training draws from; with none, training calls `reset()` and the
    environment chooses. Training goes through them in a new random order each time round, which the
    run's seed decides, unless `randomize_scenarios` is False.

    `max_turns` says the most messages of both sides in one conversation, where the environment
    knows: one that goes on for more answers than that, or than 200, has failed.
    """

    scenarios: Sequence[Scenario] = ()
    max_turns: int | None = None
    randomize_scenarios: bool | None = None

    @abstractmethod
    async def reset(self, scenario: Scenario | None = None) -> EnvironmentState:
        """Start a conversation; None lets the environment choose its scenario."""

    @abstractmethod
    async def step(self, state: EnvironmentState, action: ConversationTurn) -> StepResult:
        """Take the agent's answer; return new state, user's response, reward, done.

        Return a new state and leave the given one as it is: conversations may start from the same.
        The user's response belongs into the new state's history as well, which is all that the
        agent sees.

        The reward is kept in `action.metadata["environment_reward"]`. By itself it changes nothing:
        the reward function alone says what an episode is worth. `rewards.EnvironmentReward` is one
        that goes by these numbers, alone or as a part of a `CompositeReward`.
        """


class ConversationEnvironment(Environment):
    """Scripted users: the user speaks first and says `user_responses` in order.

    Args:
        scenarios: each has `id` and `user_responses`; `context`, if there, is the policy text that
            becomes the system message at the head of the history. Other keys are for rewards.
        max_turns: the most messages of both sides, the system message not counted: 6 allows three
            of the user's, each answered. A message of the user that could not be answered within
            the limit is not said.
        randomize_scenarios: True: `reset()` and training go through the scenarios in a new random
            order each time round. False: in the given order. None: training at random, `reset()`
            in the given order.
        seed: of the order of `reset()` (None: random); training's is the run's.

    Raises:
        ConfigurationError: every scenario that cannot be played, with what is wrong with it.
    """

    def __init__(
        self,
        scenarios: Sequence[Mapping[str, Any]],
        max_turns: int = 10,
        randomize_scenarios: bool | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        problems = _problems(scenarios)
        given: Any = max_turns
        order: Any = randomize_scenarios
        if not isinstance(given, int):
            problems.append(f"max_turns is {max_turns!r}; a whole number is needed")
        elif max_turns < 2:
            problems.append(
                f"max_turns is {max_turns}; it counts messages of both sides, so at least 2"
            )
        if not isinstance(order, bool | None):
            problems.append(
                f"randomize_scenarios is {randomize_scenarios!r}; allowed: True, False, None"
            )
        if problems:
            raise ConfigurationError(problems)
        self.scenarios: Sequence[Scenario] = [dict(scenario) for scenario in scenarios]
        self.max_turns: int = max_turns
        self.randomize_scenarios = randomize_scenarios
        self._random = random.Random(seed)
        self._upcoming: list[Scenario] = []

    async def reset(self, scenario: Mapping[str, Any] | None = None) -> EnvironmentState:
        """Start the scenario with the user's first message; None takes the next one.

        Raises:
            ConfigurationError: the scenario cannot be played.
        """
        if scenario is None:
            scenario = self._next_scenario()
        elif problems := _scenario_problems(scenario, "the scenario"):
            raise ConfigurationError(problems)
        history = []
        if context := scenario.get("context"):
            history.append(ConversationTurn(role="system", content=context))
        history.append(ConversationTurn(role="user", content=scenario["user_responses"][0]))
        return EnvironmentState(
            conversation_history=history,
            metadata={"scenario_id": scenario["id"], "num_user_responses": 1, "num_turns": 1},
            scenario=dict(scenario),
        )

    async def step(
        self, state: EnvironmentState, action: ConversationTurn | Message | str
    ) -> tuple[EnvironmentState, ConversationTurn | None, float, bool]:
        """Add the agent's answer and the user's next message, if there is one.

        The reward is always 0: scripted users do not judge.

        Raises:
            ConfigurationError: the state is not from this class's `reset`.
        """
        if state.scenario is None:
            raise ConfigurationError("the state has no scenario; start with `await reset()`")
        responses: Sequence[str] = state.scenario["user_responses"]
        num_said, num_turns = state.metadata["num_user_responses"], state.metadata["num_turns"] + 1
        history = [*state.conversation_history, to_turn(action, role="assistant")]
        stop_reason, user_response = None, None
        if num_said == len(responses):
            stop_reason = StopReason.COMPLETED
        elif num_turns + 2 > self.max_turns:
            stop_reason = StopReason.MAX_TURNS
        else:
            user_response = ConversationTurn(role="user", content=responses[num_said])
            history.append(user_response)
            num_said, num_turns = num_said + 1, num_turns + 1
        counts = {"num_user_responses": num_said, "num_turns": num_turns}
        new_state = replace(
            state,
            conversation_history=history,
            metadata={**state.metadata, **counts},
            stop_reason=stop_reason,
        )
        return new_state, user_response, 0.0, stop_reason is not None

    def _next_scenario(self) -> Scenario:
        if not self._upcoming:
            self._upcoming = list(self.scenarios)
            if self.randomize_scenarios:
                self._random.shuffle(self._upcoming)
        return self._upcoming.pop(0)


def _problems(scenarios: Any) -> list[str]:
    if isinstance(scenarios, str | Mapping) or not isinstance(scenarios, Sequence):
        return [f"scenarios is a {type(scenarios).__name__}; a list of mappings is needed"]
    if not scenarios:
        return ["there are no scenarios; at least one is needed"]
    problems: list[str] = []
    seen: dict[Any, int] = {}
    for index, scenario in enumerate(scenarios):
        problems += _scenario_problems(scenario, f"scenario {index}")
        scenario_id = scenario.get("id") if isinstance(scenario, Mapping) else None
        if isinstance(scenario_id, str) and scenario_id in seen:
            problems.append(
                f"scenario {index}: the id {scenario_id!r} is also that of scenario "
                f"{seen[scenario_id]}; ids are unique"
            )
        elif isinstance(scenario_id, str):
            seen[scenario_id] = index
    return problems


def _scenario_problems(scenario: object, where: str) -> list[str]:
    if not isinstance(scenario, Mapping):
        return [f"{where} is a {type(scenario).__name__}; it must be a mapping"]
    problems = []
    scenario_id, responses = scenario.get("id"), scenario.get("user_responses")
    if not isinstance(scenario_id, str) or not scenario_id:
        problems.append(f"{where}: id is {scenario_id!r}; it must be a name that is not empty")
    else:
        where = f"{where} ({scenario_id})"
    if isinstance(responses, str) or not isinstance(responses, Sequence) or not responses:
        problems.append(
            f"{where}: user_responses is {responses!r}; it must list what the user says"
        )
    else:
        problems += [
            f"{where}: user_responses[{position}] is {text!r}; it must be text that is not empty"
            for position, text in enumerate(responses)
            if not isinstance(text, str) or not text.strip()
        ]
    if not isinstance(scenario.get("context"), str | None):
        problems.append(
            f"{where}: context is {scenario['context']!r}; it must be text, or left out"
        )
    return problems
