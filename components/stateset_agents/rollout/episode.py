"""One episode: an agent and an environment play one conversation to its end.

Owns the loop and what an exception in it means. It does not know groups nor rewards.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from stateset_agents.core.agent import Agent
from stateset_agents.core.environment import Environment, EnvironmentState, Scenario, StepResult
from stateset_agents.core.recorder import EpisodeRecorder, recording
from stateset_agents.core.trajectory import (
    ConversationTurn,
    MultiTurnTrajectory,
    StopReason,
    to_messages,
    to_turn,
)
from stateset_agents.exceptions import (
    ConfigurationError,
    ContextLengthError,
    DataError,
    RolloutError,
)

logger = logging.getLogger(__name__)

# What an environment gets that does not say how long its conversations are: one that never says
# done would go on for ever where the model's context is long.
MOST_ANSWERS = 200


@dataclass(frozen=True, slots=True)
class EpisodePlan:
    """What is decided before an episode starts.

    `state` is where it starts; None resets the environment with `scenario`. `conversation_id` and
    `engine_group_id` name caches of the engine and are never recorded.
    """

    trajectory_id: str
    group_id: str
    scenario: Scenario | None
    seed: int
    conversation_id: str
    engine_group_id: str | None = None
    state: EnvironmentState | None = None


async def start_of(environment: Environment, scenario: Scenario | None) -> EnvironmentState:
    """Where the environment starts a conversation.

    Raises:
        DataError: what it gave is no state.
    """
    given: object = await (environment.reset() if scenario is None else environment.reset(scenario))
    if isinstance(given, EnvironmentState):
        return given
    raise DataError(
        f"{type(environment).__name__}.reset() returned {given!r:.200}; it must return an "
        "EnvironmentState (check_environment(environment) tells more)"
    )


async def run_episode(
    agent: Agent, environment: Environment, plan: EpisodePlan, *, told: set[str] | None = None
) -> MultiTurnTrajectory:
    """Play one conversation. It ends when the environment says so, when the context is full
    (`CONTEXT_FULL`), or when the agent or the environment raises (`FAILED`, with the error's text).

    A first turn that does not fit the context has failed: nothing was sampled. `told` are errors
    that the log has: a warning tells each of them once.

    Raises:
        ConfigurationError: a wrong configuration would fail every episode alike.
    """
    recorder = EpisodeRecorder(plan.conversation_id, plan.seed, plan.engine_group_id)
    trajectory = MultiTurnTrajectory(
        trajectory_id=plan.trajectory_id,
        turns=[],
        trajectory_group_id=plan.group_id,
        metadata={"seed": plan.seed},
    )
    try:
        with recording(recorder):
            state = plan.state or await start_of(environment, plan.scenario)
            trajectory.stop_reason = await _converse(
                agent, environment, state, trajectory, recorder
            )
    except ConfigurationError:
        raise
    except Exception as error:
        # User code may raise anything. The episode is recorded as failed and never trained on.
        trajectory.stop_reason = StopReason.FAILED
        trajectory.error = f"{type(error).__name__}: {error}"
        told = set() if told is None else told
        level = logging.DEBUG if trajectory.error in told else logging.WARNING
        logger.log(level, "episode %s failed", plan.trajectory_id, exc_info=error)
        told.add(trajectory.error)
    finally:
        agent.release(plan.conversation_id)
    trajectory.samples = recorder.samples
    return trajectory


async def _converse(
    agent: Agent,
    environment: Environment,
    state: EnvironmentState,
    trajectory: MultiTurnTrajectory,
    recorder: EpisodeRecorder,
) -> StopReason:
    turns = trajectory.turns
    turns.extend(to_turn(entry, role="user") for entry in state.conversation_history)
    num_answers, most_answers = 0, max(MOST_ANSWERS, environment.max_turns or 0)
    while num_answers < most_answers:
        num_samples, recorder.turn = len(recorder.samples), num_answers
        try:
            answer = await agent.generate_response(to_messages(state.conversation_history))
        except ContextLengthError:
            if num_answers == 0:
                raise
            if turns[-1].role == "user":
                turns.pop()  # it got no answer, so it is no part of what the agent is judged by
            return StopReason.CONTEXT_FULL
        if not isinstance(answer, str):
            raise DataError(f"the agent answered {answer!r}; generate_response must return text")
        spoken = recorder.spoken(answer, num_samples)
        action = ConversationTurn("assistant", answer, sample=spoken.sample if spoken else None)
        if spoken is not None and spoken.reasoning is not None:
            action.metadata["reasoning"] = spoken.reasoning
        turns.append(action)
        num_answers += 1
        state, user_response, reward, done = _four(
            await environment.step(state, action), environment
        )
        action.metadata["environment_reward"] = float(reward)
        if user_response is not None:
            turns.append(to_turn(user_response, role="user"))
        if done:
            return state.stop_reason or StopReason.COMPLETED
    raise RolloutError(
        f"{type(environment).__name__} did not end the conversation in {most_answers} answers; its "
        "step() must return done=True at some time (check_environment(environment) tells more), "
        f"and if conversations of more than {MOST_ANSWERS} answers are meant, its max_turns must "
        "say how many messages both sides have at most"
    )


def _four(result: StepResult, environment: Environment) -> StepResult:
    if isinstance(result, tuple) and len(result) == 4:
        return result
    raise DataError(
        f"{type(environment).__name__}.step() returned {result!r:.200}; it must return four: "
        "(new_state, user_response, reward, done)"
    )
