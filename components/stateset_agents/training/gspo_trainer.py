"""GSPO under the guide's names: `GSPOConfig` and `train_with_gspo`.

Owns the defaults that the guide gives GSPO. The algorithm is a row of `algorithms.py` like any
other, and the trainer is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from stateset_agents.core.agent import MultiTurnAgent
from stateset_agents.core.environment import Environment, Scenario
from stateset_agents.core.reward import RewardFunction
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.callbacks import TrainingCallback
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.multi_turn_trainer import MultiTurnGRPOTrainer


class GSPOConfig(TrainingConfig):
    """`TrainingConfig` with GSPO's defaults; training lasts `num_outer_iterations` steps."""

    algorithm: Literal["gspo", "gspo_token"] = "gspo"
    """`gspo`, or `gspo_token`, which can credit turns."""
    num_generations: int = Field(default=4, ge=1)
    """Conversations per scenario; sequence-level ratios are steadier, so fewer will do."""
    num_outer_iterations: int = Field(default=100, ge=1)
    """Batches of conversations in the whole run, instead of `num_episodes` and `num_epochs`."""

    def _problems_of_length(self) -> Iterator[str]:
        given = sorted({"num_episodes", "num_epochs"} & self.model_fields_set)
        if given:
            yield (
                f"{' and '.join(given)} cannot work here: a GSPOConfig says how long "
                "training lasts by num_outer_iterations; leave them out, or use "
                'TrainingConfig(algorithm="gspo")'
            )

    @property
    def total_steps(self) -> int:
        """Batches of conversations in the whole run."""
        return self.num_outer_iterations


async def train_with_gspo(
    config: GSPOConfig,
    agent: MultiTurnAgent,
    environment: Environment,
    reward_model: RewardFunction,
    *,
    callbacks: Sequence[TrainingCallback] = (),
    resume_from: Path | str | None = None,
    eval_scenarios: Sequence[Scenario] = (),
    eval_environment: Environment | None = None,
) -> MultiTurnAgent:
    """Train `agent` over whole conversations in `environment`, and return it.

    `callbacks`, `resume_from`, `eval_scenarios` and `eval_environment` are those of `train`.

    Raises:
        ConfigurationError: a config that is of no GSPO.
        StateSetError: what `Trainer.train` raises.
    """
    if getattr(config, "algorithm", None) not in ("gspo", "gspo_token"):
        raise ConfigurationError(
            f"train_with_gspo was given a {type(config).__name__} with algorithm="
            f"{getattr(config, 'algorithm', None)!r}; give a GSPOConfig, or a "
            'TrainingConfig(algorithm="gspo"), or call train()'
        )
    trainer = MultiTurnGRPOTrainer(
        agent,
        environment,
        reward_model,
        config,
        eval_scenarios=eval_scenarios,
        eval_environment=eval_environment,
    )
    return await trainer.train(callbacks, resume_from=resume_from)
