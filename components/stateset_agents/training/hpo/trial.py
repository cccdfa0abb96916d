"""One trial: a configuration trained from the initial weights, and scored.

Owns what a trial does with its parameters and that it leaves nothing behind: its agent, engine and
policy are its own and end with it. It does not know how parameters are chosen or kept.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stateset_agents.core.agent import MultiTurnAgent
from stateset_agents.core.environment import Environment
from stateset_agents.core.reward import RewardFunction
from stateset_agents.core.seeds import derive_seed
from stateset_agents.exceptions import TrainingError
from stateset_agents.training import checkpoint as checkpoints
from stateset_agents.training.callbacks import TrainingCallback
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.demonstrations import Demonstration
from stateset_agents.training.hpo.config import REWARD
from stateset_agents.training.hpo.spaces import agent_parameters, with_parameters
from stateset_agents.training.hpo.validation import Validation
from stateset_agents.training.trainer import Trainer

# Told after every optimizer batch: its number from 1, and its metrics. What it raises ends the
# trial.
StepReport = Callable[[int, Mapping[str, float]], None]

SEED_LIMIT = 2**31


class TrialTooLongError(TrainingError):
    """A trial was ended at its time limit."""


@dataclass(frozen=True)
class TrialRunner:
    """What all trials of a search share.

    Attributes:
        agent: whose settings and class the trials' own agents have; it is not changed.
        environment: what is trained on; each trial has a copy.
        validation: what is scored on.
        config: the base configuration.
        demonstrations: what `warm_start_steps` imitates.
        time_limit_seconds: of a trial's training.
        validation_seed: of the validation's conversations.
    """

    agent: MultiTurnAgent
    environment: Environment
    reward_function: RewardFunction
    validation: Validation
    config: TrainingConfig
    demonstrations: Sequence[Demonstration] = ()
    time_limit_seconds: float | None = None
    validation_seed: int = 0

    async def run(
        self, parameters: Mapping[str, Any], *, repeat: int = 0, report: StepReport | None = None
    ) -> dict[str, float]:
        """Train with the parameters and give `Validation.score`'s measures and `train_seconds`.

        `repeat` 0 trains with the base configuration's seed; each other number is a fresh one, of
        training and validation both.

        Raises:
            TrialTooLongError: training took longer than it may.
            StateSetError: what `Trainer.train` raises, and what `report` does.
        """
        config, seed = with_parameters(self.config, parameters), self.validation_seed
        if repeat:
            fresh = derive_seed(config.seed, "again", repeat) % SEED_LIMIT
            config = with_seed(config, fresh)
            seed = derive_seed(seed, "again", repeat)
        agent = self.agent.with_own_engine(**agent_parameters(parameters))
        environment = copy.deepcopy(self.environment)
        trainer = Trainer(
            agent,
            environment,
            self.reward_function,
            config,
            demonstrations=self.demonstrations,
        )
        watch = _Watch(report, self.time_limit_seconds)
        began = time.perf_counter()
        try:
            await trainer.train([watch])
            seconds = time.perf_counter() - began
            measures = await self.validation.score(agent, self.reward_function, seed)
        finally:
            await trainer.close()
            del trainer, agent
            gc.collect()  # policy and optimizer hang on each other by hooks; their memory is large
        return {**measures, "train_seconds": seconds}

    def check(self) -> None:
        """Find what no trial could start with.

        Raises:
            ConfigurationError: an agent that cannot be trained, a warm start without
                demonstrations.
        """
        Trainer(
            self.agent,
            self.environment,
            self.reward_function,
            self.config,
            demonstrations=self.demonstrations,
        )

    def describe(self) -> dict[str, str]:
        """Digests of what decides a trial's values, beside its parameters: of settings and data, of
        code, weights and the reward function it does not know.
        """
        data = {
            "trained on": list(self.environment.scenarios),
            "validated on": list(self.validation.environment.scenarios),
            "demonstrations": [(list(one.messages), one.answer) for one in self.demonstrations],
        }
        return {
            "training settings": checkpoints.digest(self.config.model_dump()),
            "agent settings": checkpoints.digest(self.agent.config.model_dump()),
            "validation samples": str(self.validation.samples),
            **{name: checkpoints.digest(value) for name, value in data.items()},
        }


def with_seed(config: TrainingConfig, seed: int) -> TrainingConfig:
    """The same configuration with another seed."""
    return type(config)(**{**config.model_dump(include=config.model_fields_set), "seed": seed})


def step_measure(metrics: Mapping[str, float], measure: str) -> float | None:
    """What an optimizer batch's metrics say of an objective's measure; None where nothing."""
    name = {REWARD: "reward/mean", "answer_tokens": "rollout/answer_tokens_mean"}.get(
        measure, f"reward/{measure}"
    )
    return metrics.get(name)


class _Watch(TrainingCallback):
    """Reports every step, and ends what takes too long."""

    def __init__(self, report: StepReport | None, limit_seconds: float | None) -> None:
        self._report, self._limit = report, limit_seconds
        self._began = time.perf_counter()

    async def on_step_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        if self._report is not None:
            self._report(trainer.step, metrics)
        seconds = time.perf_counter() - self._began
        if self._limit is not None and seconds > self._limit and not trainer.is_last_step:
            raise TrialTooLongError(
                f"ended at step {trainer.step} of {trainer.total_steps} after {seconds:.0f} s; "
                f"trial_time_limit_seconds is {self._limit:g}"
            )
