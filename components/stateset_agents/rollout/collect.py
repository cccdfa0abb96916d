"""Rollout: all episodes of a step at once.

Owns names and seeds of episodes and how they run side by side. It does not know rewards.

Notation: G trajectories in a group.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from typing import NamedTuple

from stateset_agents.core.agent import Agent
from stateset_agents.core.environment import Environment, EnvironmentState, Scenario
from stateset_agents.core.seeds import derive_seed
from stateset_agents.core.trajectory import MultiTurnTrajectory, TrajectoryGroup
from stateset_agents.exceptions import ConfigurationError, RolloutError, StateSetError
from stateset_agents.rollout.episode import EpisodePlan, run_episode, start_of

# Two rollouts on one engine at a time must not share caches by having the same names.
_rollout_numbers = itertools.count()


async def collect_groups(
    agent: Agent,
    environment: Environment,
    scenarios: Sequence[Scenario | None],
    *,
    num_generations: int,
    seed: int,
    step: int = 0,
    round_number: int = 0,
    only: Container[int] | None = None,
    on_episode: Callable[[MultiTurnTrajectory], None] | None = None,
) -> list[TrajectoryGroup]:
    """Play every scenario `num_generations` times, all episodes side by side.

    An episode's seed is derived from (seed, step, scenario id, how often the scenario came before
    in `scenarios`, sample): a sample depends neither on the order of scenarios nor on what else is
    running. None in place of a scenario lets the environment choose one, once for the whole group.

    Args:
        agent: has been initialized.
        environment: shared by all episodes.
        scenarios: one group each; a scenario's "id" names it.
        num_generations: G, at least 1.
        seed: of the run.
        step: of training; part of every seed and name.
        round_number: of the step, should it play several times; 0 is not part of seeds and names.
        only: which places of `scenarios` are played here, the others elsewhere; None: all. Names
            and seeds are those of the whole list.
        on_episode: called with each trajectory as it ends, in the order of ending.

    Returns:
        The groups that were played in the order of `scenarios`, trajectories in the order of their
        samples.

    Raises:
        ConfigurationError: `num_generations` is below 1, or an episode found the configuration
            wrong. Every other exception of an episode is recorded in its trajectory.
        RolloutError: the environment raised where it was to choose a scenario.
    """
    if num_generations < 1:
        raise ConfigurationError(f"num_generations is {num_generations}; it must be at least 1")
    names = _names(scenarios, step, round_number)
    # A group compares answers to one start; where the environment chooses, it chooses once.
    starts = [
        await _chosen_start(environment) if scenario is None else None for scenario in scenarios
    ]
    prefix = f"rollout-{next(_rollout_numbers)}"
    planned = [
        _plan_group(scenario, start, name, num_generations, seed, prefix)
        for place, (scenario, start, name) in enumerate(zip(scenarios, starts, names, strict=True))
        if only is None or place in only
    ]
    played = iter(await _play_all(agent, environment, itertools.chain(*planned), on_episode))
    return [_group(plans, itertools.islice(played, len(plans))) for plans in planned]


class _GroupName(NamedTuple):
    """What tells a group of a run from every other one; `occurrence` counts from 0."""

    step: int
    round_number: int
    scenario_id: str
    occurrence: int

    def __str__(self) -> str:
        round_part = f"round-{self.round_number}/" if self.round_number else ""
        occurrence = f"~{self.occurrence}" if self.occurrence else ""
        return f"step-{self.step}/{round_part}{self.scenario_id}{occurrence}"

    def seed_of(self, sample: int, run_seed: int) -> int:
        later_round = (self.round_number,) if self.round_number else ()
        return derive_seed(
            run_seed, self.step, self.scenario_id, self.occurrence, sample, *later_round
        )


def _names(scenarios: Sequence[Scenario | None], step: int, round_number: int) -> list[_GroupName]:
    """One for each place; a scenario that comes again is told from the first time by a count."""
    seen: Counter[str] = Counter()
    names = []
    for place, scenario in enumerate(scenarios):
        scenario_id = str((scenario or {}).get("id", f"scenario-{place}"))
        names.append(_GroupName(step, round_number, scenario_id, seen[scenario_id]))
        seen[scenario_id] += 1
    return names


def _plan_group(
    scenario: Scenario | None,
    start: EnvironmentState | None,
    name: _GroupName,
    num_generations: int,
    seed: int,
    prefix: str,
) -> list[EpisodePlan]:
    return [
        EpisodePlan(
            trajectory_id=f"{name}/{sample}",
            group_id=str(name),
            scenario=start.scenario if start else scenario,
            seed=name.seed_of(sample, seed),
            conversation_id=f"{prefix}/{name}/{sample}",
            engine_group_id=f"{prefix}/{name}",
            state=copy.deepcopy(start),
        )
        for sample in range(num_generations)
    ]


def _group(plans: Sequence[EpisodePlan], played: Iterable[MultiTurnTrajectory]) -> TrajectoryGroup:
    first = plans[0]
    scenario = first.scenario or {"id": first.group_id}
    return TrajectoryGroup(group_id=first.group_id, scenario=scenario, trajectories=list(played))


async def _chosen_start(environment: Environment) -> EnvironmentState:
    try:
        return await start_of(environment, None)
    except StateSetError:
        raise
    except Exception as error:
        raise RolloutError(
            f"{type(environment).__name__}.reset() raised {type(error).__name__}: {error}; "
            "check_environment(environment) tells more"
        ) from error


async def _play_all(
    agent: Agent,
    environment: Environment,
    plans: Iterable[EpisodePlan],
    on_episode: Callable[[MultiTurnTrajectory], None] | None,
) -> list[MultiTurnTrajectory]:
    """Play side by side, each in its own task; the first exception cancels the others."""
    told: set[str] = set()

    async def play(plan: EpisodePlan) -> MultiTurnTrajectory:
        trajectory = await run_episode(agent, environment, plan, told=told)
        if on_episode is not None:
            on_episode(trajectory)
        return trajectory

    try:
        async with asyncio.TaskGroup() as tasks:
            playing = [tasks.create_task(play(plan)) for plan in plans]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [task.result() for task in playing]
