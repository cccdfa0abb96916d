"""What a step trains on: its scenarios played and scored, and replaced where they teach nothing.

Owns which scenarios a step plays and the rounds of dynamic sampling. It does not know the policy
nor the optimizer, so a step's conversations can be played before its turn comes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import Any

from stateset_agents.core.agent import Agent
from stateset_agents.core.environment import Environment, Scenario
from stateset_agents.core.reward import RewardFunction
from stateset_agents.core.trajectory import MultiTurnTrajectory, StopReason, TrajectoryGroup
from stateset_agents.rollout.collect import collect_groups
from stateset_agents.rollout.scoring import check_some_have_rewards, score_groups
from stateset_agents.rollout.stored import group_from_json, group_to_json
from stateset_agents.training.advantages import groups_to_replace
from stateset_agents.training.batching import step_rows
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.objective import objective_of
from stateset_agents.training.processes import ALONE, Processes
from stateset_agents.training.scenario_order import further_scenarios, scenarios_of_step

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class StepRollout:
    """The conversations of one step, with their rewards.

    Attributes:
        groups: those that are trained on.
        resampled_groups: how many had no spread and were replaced, over all rounds.
        discarded_tokens: sampled in the groups that were replaced.
        seconds: by stage, `rollout` and `reward`.
    """

    groups: list[TrajectoryGroup]
    resampled_groups: int = 0
    discarded_tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint; see `rollout.stored` for what comes back."""
        return {
            "groups": [group_to_json(group) for group in self.groups],
            "resampled_groups": self.resampled_groups,
            "discarded_tokens": self.discarded_tokens,
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> StepRollout:
        """What `to_json` gave."""
        groups = [group_from_json(group) for group in stored["groups"]]
        return cls(**{**stored, "groups": groups})


class RolloutPlayer:
    """Plays the conversations of a step with the weights that the agent's engine has.

    What it plays is a function of seed, step and these weights, so it has no state to save.
    """

    def __init__(
        self,
        agent: Agent,
        environment: Environment,
        reward_function: RewardFunction,
        config: TrainingConfig,
        on_episode: Callable[[MultiTurnTrajectory], None],
        processes: Processes = ALONE,
    ) -> None:
        self._agent = agent
        self._environment = environment
        self._reward_function = reward_function
        self._config = config
        self._objective = objective_of(config)
        self._on_episode = on_episode
        self._processes = processes
        self._told_of_full_contexts = False

    async def play(self, step: int) -> StepRollout:
        """Play and score what step `step` (from 0) trains on.

        With `resampling_rounds` groups without spread are replaced by groups of further scenarios,
        at most so many times; what has none after the last round stays, and teaches nothing.

        Raises:
            RolloutError: every episode of the step failed.
            RewardError: a reward function raised or gave no number, or none of the step's is
                finite.
        """
        config = self._config
        rollout = StepRollout([])
        rollout.groups = await self._play_round(rollout, step, 0, self._scenarios(step))
        check_some_have_rewards(rollout.groups, self._reward_function)
        self._tell_if_only_the_context_ends(rollout.groups)
        further = self._further(step)
        for round_number in range(1, self._objective.resampling_rounds + 1):
            rows = step_rows(rollout.groups, config)
            dull = groups_to_replace(rows, len(rollout.groups), self._objective)
            if not dull:
                break
            chosen = list(islice(further, len(dull)))
            fresh = await self._play_round(rollout, step, round_number, chosen)
            for place, group in zip(dull, fresh, strict=True):
                rollout.discarded_tokens += _sampled_tokens(rollout.groups[place])
                rollout.groups[place] = group
            rollout.resampled_groups += len(dull)
        return rollout

    def _tell_if_only_the_context_ends(self, groups: Sequence[TrajectoryGroup]) -> None:
        """Once a run: most often the environment forgets to end conversations."""
        reasons = {one.stop_reason for group in groups for one in group.trajectories}
        if reasons == {StopReason.CONTEXT_FULL} and not self._told_of_full_contexts:
            self._told_of_full_contexts = True
            _log.warning(
                "every conversation of a step ended because the model's context was full, and none "
                "because %s said so: its step() must return done=True at some time "
                "(max_turns of a ConversationEnvironment), or the context is too small for it",
                type(self._environment).__name__,
            )

    async def _play_round(
        self,
        rollout: StepRollout,
        step: int,
        round_number: int,
        scenarios: Sequence[Scenario | None],
    ) -> list[TrajectoryGroup]:
        return await self._processes.whole(self._play_share(rollout, step, round_number, scenarios))

    async def _play_share(
        self,
        rollout: StepRollout,
        step: int,
        round_number: int,
        scenarios: Sequence[Scenario | None],
    ) -> list[TrajectoryGroup]:
        with timed(rollout.seconds, "rollout"):
            groups = await collect_groups(
                self._agent,
                self._environment,
                scenarios,
                num_generations=self._config.num_generations,
                seed=self._config.seed,
                step=step,
                round_number=round_number,
                only=self._processes.own(len(scenarios)),
                on_episode=self._on_episode,
            )
        with timed(rollout.seconds, "reward"):
            await score_groups(groups, self._reward_function, tolerant=True)
        return groups

    def _scenarios(self, step: int) -> Sequence[Scenario | None]:
        scenarios, count = self._environment.scenarios, self._config.groups_per_step
        if not scenarios:
            return [None] * count
        return scenarios_of_step(
            scenarios, step, count, self._config.seed, shuffled=self._is_shuffled
        )

    def _further(self, step: int) -> Iterator[Scenario | None]:
        scenarios, count = self._environment.scenarios, self._config.groups_per_step
        if not scenarios:
            return repeat(None)
        return further_scenarios(
            scenarios, step, count, self._config.seed, shuffled=self._is_shuffled
        )

    @property
    def _is_shuffled(self) -> bool:
        return self._environment.randomize_scenarios is not False


def _sampled_tokens(group: TrajectoryGroup) -> int:
    return sum(len(sample.token_ids) for one in group.trajectories for sample in one.samples)


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add what passes within it to `seconds[stage]`."""
    started = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
