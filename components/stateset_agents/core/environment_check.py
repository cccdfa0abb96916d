"""What is wrong with an environment, told before training finds out.

Owns a trial of `reset` and `step` with canned answers, and the findings. It does not know models,
rewards or training.
"""

from __future__ import annotations

import asyncio
import copy
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import isawaitable
from numbers import Real
from typing import Any, Literal, NoReturn

import numpy as np

from stateset_agents.core.environment import Environment, EnvironmentState, Scenario
from stateset_agents.core.trajectory import ConversationTurn, to_turn
from stateset_agents.exceptions import ConfigurationError, DataError

ANSWERS = (
    "Hello! How can I help you?",
    "Could you tell me a little more, please?",
    "I see. Let me look into that for you.",
    "Is there anything else that I can do for you?",
)
ROLES = ("system", "user", "assistant")

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class EnvironmentFinding:
    """One thing that was found.

    Attributes:
        level: "error": training would fail or learn something else than was meant; "warning": it
            works, and may be meant so.
        check: what kind of thing, a short name: `never_ends`.
        message: where, what was found, what is needed.
    """

    level: Level
    check: str
    message: str

    def __str__(self) -> str:
        return f"{self.level}: {self.check}: {self.message}"


@dataclass(frozen=True, slots=True)
class EnvironmentReport:
    """What `check_environment` found; `str()` of it is for a person.

    Attributes:
        environment: its class.
        findings: in the order in which they were found, each once.
        num_conversations: played to the end.
    """

    environment: str
    findings: tuple[EnvironmentFinding, ...]
    num_conversations: int

    @property
    def ok(self) -> bool:
        """True without an error; warnings may be there."""
        return all(finding.level != "error" for finding in self.findings)

    def raise_errors(self) -> None:
        """Do nothing where all is well.

        Raises:
            ConfigurationError: every error, a line each.
        """
        errors = [finding.message for finding in self.findings if finding.level == "error"]
        if errors:
            raise ConfigurationError(errors)

    def __str__(self) -> str:
        count = len(self.findings)
        found = "nothing found" if not count else f"{count} finding{'s' if count > 1 else ''}"
        head = f"{self.environment}, {self.num_conversations} conversations played: {found}"
        return "\n".join([head, *(f"  {finding}" for finding in self.findings)])


async def check_environment(
    environment: Environment,
    *,
    scenarios: Sequence[Scenario] | None = None,
    answers: Sequence[str] = ANSWERS,
    max_answers: int = 50,
    timeout_seconds: float = 10.0,
    seed: int = 0,
) -> EnvironmentReport:
    """Play an environment with canned answers, and say what is wrong with it.

    Each scenario is played twice from one state of the global random generators (Python's and
    NumPy's, put back afterwards), on a copy of the environment each time where it can be copied.

    Args:
        environment: to be checked; it is played, so give one whose conversations cost nothing.
        scenarios: which to play. None: up to five of the environment's own, or its own choice where
            it has none.
        answers: what the agent says, in turn and then again.
        max_answers: a conversation that takes more of them is said never to end.
        timeout_seconds: for each `reset` and `step`.
        seed: of the random generators.

    Returns:
        Findings as data; `report.ok` is for a test, `report.raise_errors()` for a script.
    """
    trial = _Trial(environment, tuple(answers), max_answers, timeout_seconds, seed)
    trial.findings += _about_scenarios(environment)
    own = list(environment.scenarios)[:5] if _is_list(environment.scenarios) else []
    chosen: Sequence[Scenario | None] = scenarios if scenarios is not None else (own or [None])
    for scenario in chosen:
        if scenario is None or isinstance(scenario, Mapping):
            await trial.play_twice(scenario)
    return EnvironmentReport(
        type(environment).__name__, tuple(dict.fromkeys(trial.findings)), trial.num_conversations
    )


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _about_scenarios(environment: Environment) -> Iterator[EnvironmentFinding]:
    scenarios: Any = environment.scenarios
    if not _is_list(scenarios):
        yield EnvironmentFinding(
            "error",
            "scenarios_no_list",
            f"scenarios is a {type(scenarios).__name__}; a list of mappings is needed, or nothing "
            "where the environment chooses for itself",
        )
        return
    if not scenarios and "scenarios" in vars(environment):
        yield EnvironmentFinding(
            "error",
            "no_scenarios",
            "scenarios is empty: training would have nothing to draw from and call reset() without "
            "one. Give scenarios, or leave the attribute out where the environment chooses",
        )
    seen: dict[str, int] = {}
    for index, scenario in enumerate(scenarios):
        if not isinstance(scenario, Mapping):
            yield EnvironmentFinding(
                "error",
                "scenario_no_mapping",
                f"scenario {index} is a {type(scenario).__name__}; a mapping is needed",
            )
            continue
        name = scenario.get("id")
        if name is None:
            yield EnvironmentFinding(
                "warning",
                "scenario_without_id",
                f"scenario {index} has no id; without one its seeds depend on its place in a step",
            )
        elif str(name) in seen:
            yield EnvironmentFinding(
                "error",
                "scenario_id_repeated",
                f"scenario {index} has the id {name!r} of scenario {seen[str(name)]}; ids are "
                "unique",
            )
        seen.setdefault(str(name), index)


class _Stopped(Exception):
    """A conversation that cannot go on; what is wrong has been found."""


class _Trial:
    """Plays conversations and collects findings."""

    def __init__(
        self,
        environment: Environment,
        answers: tuple[str, ...],
        max_answers: int,
        timeout_seconds: float,
        seed: int,
    ) -> None:
        self.environment = environment
        self.findings: list[EnvironmentFinding] = []
        self.num_conversations = 0
        self._answers = answers
        self._max_answers = max_answers
        self._timeout_seconds = timeout_seconds
        self._seed = seed

    async def play_twice(self, scenario: Scenario | None) -> None:
        """Play a scenario, and again; what happens should be the same."""
        where = "the environment's own choice"
        if scenario is not None:
            where = f"scenario {scenario.get('id', 'without id')!r}"
        states = random.getstate(), np.random.get_state()
        played: list[list[Any]] = []
        try:
            for _ in range(2):
                random.seed(self._seed)
                np.random.seed(self._seed % 2**32)
                played.append(await self._play(self._copy(), scenario, where))
        except _Stopped:
            return
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
        if played[0] != played[1]:
            self._found(
                "not_deterministic",
                f"{where}: two conversations from one state of the random generators, with the "
                "same answers, differ. Draw random numbers from `random`, `numpy.random` or a "
                "generator that the environment was given a seed for, or a run cannot be repeated",
                "warning",
            )

    def _copy(self) -> Environment:
        try:
            return copy.deepcopy(self.environment)
        except Exception:  # a connection, a lock: then the one that there is has to do
            return self.environment

    def _found(self, check: str, message: str, level: Level = "error") -> None:
        self.findings.append(EnvironmentFinding(level, check, message))

    async def _play(
        self, environment: Environment, scenario: Scenario | None, where: str
    ) -> list[Any]:
        """What was said and rewarded, in order; the findings are in `findings`."""
        before = copy.deepcopy(scenario)
        state = await self._wait(environment.reset, (scenario,), f"{where}: reset()")
        self._check_state(state, f"{where}: reset()")
        self._check_opening(state, where)
        happened: list[Any] = [_told(state.conversation_history)]
        for number in range(self._max_answers):
            step = f"{where}: step {number + 1}"
            state, user, reward, done = await self._step(environment, state, number, step)
            happened.append((_told(state.conversation_history), _told([user]), reward, done))
            if done:
                break
            self._check_going_on(state, user, step)
        else:
            self._found(
                "never_ends",
                f"{where}: not done after {self._max_answers} answers; step() must return "
                "done=True at some time, for example after max_turns messages",
            )
        if _differ(before, scenario):
            self._found(
                "scenario_changed",
                f"{where}: the scenario itself was changed; the conversations of a group share it: "
                "copy what you change (dict(scenario))",
            )
        self.num_conversations += 1
        return happened

    async def _step(
        self, environment: Environment, state: EnvironmentState, number: int, where: str
    ) -> tuple[EnvironmentState, Any, float, bool]:
        answer = self._answers[number % len(self._answers)]
        action = ConversationTurn(role="assistant", content=answer)
        before = copy.deepcopy(state)
        result = await self._wait(environment.step, (state, action), f"{where}: step()")
        if not isinstance(result, tuple) or len(result) != 4:
            shape = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
            self._stop(
                "wrong_result",
                f"{where}: step() returned {shape}; four are needed: "
                "(new_state, user_response, reward, done)",
            )
        new_state, user, reward, done = result
        if _differ(before, state):
            self._found(
                "state_changed",
                f"{where}: step() changed the state that it was given; build a new one "
                "(conversation_history + [action]), because conversations may start from one state",
            )
        self._check_state(new_state, where)
        if not isinstance(reward, Real) or not math.isfinite(float(reward)):
            self._found(
                "wrong_reward", f"{where}: the reward is {reward!r}; a finite number is needed"
            )
        if not isinstance(done, bool | np.bool_):
            self._found("wrong_done", f"{where}: done is {done!r}; True or False is needed")
        self._check_user(user, where)
        if not any(_told([entry]) == _told([action]) for entry in new_state.conversation_history):
            self._found(
                "answer_missing",
                f"{where}: the new state's history lacks the agent's answer, so the agent will not "
                "know what it said",
            )
        return new_state, user, float(reward) if isinstance(reward, Real) else 0.0, bool(done)

    # --- what is checked -------------------------------------------------------------------------

    def _check_state(self, state: Any, where: str) -> None:
        if not isinstance(state, EnvironmentState):
            self._stop(
                "wrong_state",
                f"{where} gave a {type(state).__name__} for a state; an EnvironmentState is needed",
            )
        if not isinstance(state.conversation_history, list):
            self._stop(
                "wrong_history",
                f"{where}: conversation_history is a {type(state.conversation_history).__name__}; "
                "a list of messages is needed",
            )
        for place, entry in enumerate(state.conversation_history):
            try:
                role = to_turn(entry, role="user").role
            except DataError as error:
                self._stop("wrong_message", f"{where}: conversation_history[{place}]: {error}")
            if role not in ROLES:
                self._found(
                    "wrong_role",
                    f"{where}: conversation_history[{place}] has the role {role!r}; chat templates "
                    f"know {', '.join(ROLES)}",
                )
            elif role == "system" and place:
                self._found(
                    "role_out_of_place",
                    f"{where}: conversation_history[{place}] is a system message; only the first "
                    "message can be one",
                )

    def _check_opening(self, state: EnvironmentState, where: str) -> None:
        roles = [to_turn(entry, role="user").role for entry in state.conversation_history]
        if not roles or roles == ["system"]:
            self._found(
                "agent_begins",
                f"{where}: reset() gives no message of the user, so the agent speaks first: it "
                "needs a system prompt that says about what",
                "warning",
            )
        elif roles[-1] == "assistant":
            self._found(
                "role_out_of_place",
                f"{where}: reset() ends with a message of the assistant; the agent's turn is next, "
                "so the user must have spoken last",
            )

    def _check_user(self, user: object, where: str) -> None:
        if user is None:
            return
        try:
            role = to_turn(user, role="user").role  # type: ignore[arg-type]
        except DataError as error:
            self._stop("wrong_message", f"{where}: user_response: {error}")
        if role != "user":
            self._found(
                "role_out_of_place",
                f"{where}: user_response has the role {role!r}; it is what the user says",
            )

    def _check_going_on(self, state: EnvironmentState, user: Any, where: str) -> None:
        """The conversation is not done, so the agent is asked again."""
        history = _told(state.conversation_history)
        if user is not None and _told([user]) != history[-1:]:
            self._found(
                "user_missing",
                f"{where}: the new state's history does not end with user_response, so the agent "
                "will not see it; append it",
            )
        elif history and history[-1][0] == "assistant":
            self._found(
                "nobody_spoke",
                f"{where}: done is False and nobody answered the agent, who would speak twice; "
                "return a user_response and append it, or done=True",
            )

    # --- inside ----------------------------------------------------------------------------------

    async def _wait(self, method: Any, given: tuple[Any, ...], where: str) -> Any:
        try:
            result = method(*given)
            if not isawaitable(result):
                self._stop("not_async", f"{where} is a plain function; write it as `async def`")
            return await asyncio.wait_for(result, self._timeout_seconds)
        except _Stopped:
            raise
        except TimeoutError:
            self._stop(
                "too_slow",
                f"{where} did not return within {self._timeout_seconds:g} seconds; every episode "
                "waits for it",
            )
        except Exception as error:  # user code may raise anything: that is what is looked for
            self._stop("raises", f"{where} raised {type(error).__name__}: {error}")

    def _stop(self, check: str, message: str) -> NoReturn:
        self._found(check, message)
        raise _Stopped


def _differ(before: Any, after: Any) -> bool:
    """False as well where it cannot be told: what compares by identity differs from any copy."""
    return bool(before != after) and bool(copy.deepcopy(before) == before)


def _told(history: Sequence[Any]) -> list[tuple[str, str]]:
    turns = [to_turn(entry, role="user") for entry in history if entry is not None]
    return [(turn.role, turn.content) for turn in turns]
