"""Evaluation while training goes on: scenarios that are not trained on, played and scored.

Owns which are played and that every evaluation meets the same ones with the same seeds, so that
two differ by the policy alone. What is compared at the end of the line, version against version, is
`evaluation`'s; nothing here touches the policy or a random generator that training draws from.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from statistics import fmean, pstdev

from stateset_agents.core.agent import Agent
from stateset_agents.core.environment import Environment, Scenario
from stateset_agents.core.reward import RewardFunction
from stateset_agents.core.seeds import derive_seed
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.rollout.collect import collect_groups
from stateset_agents.rollout.scoring import check_some_have_rewards, part_means, score_groups
from stateset_agents.rollout.statistics import rollout_statistics
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.random_states import random_states, restore_random_states

_log = logging.getLogger(__name__)


class HeldOutEvaluation:
    """Plays held-out scenarios with the weights that the agent's engine has.

    Which: `scenarios` in `environment`; without scenarios the environment's own; without an
    environment the training environment. Where nothing was held out the training scenarios are
    played, and a warning says so. Of them the first `eval_max_scenarios`, a conversation each,
    sampled as in training.

    Raises:
        ConfigurationError: scenarios or an environment were given, and `eval_steps` is 0.
    """

    def __init__(
        self,
        agent: Agent,
        training_environment: Environment,
        reward_function: RewardFunction,
        config: TrainingConfig,
        *,
        scenarios: Sequence[Scenario] = (),
        environment: Environment | None = None,
    ) -> None:
        is_held_out = bool(scenarios) or environment is not None
        if is_held_out and config.eval_steps == 0:
            raise ConfigurationError(
                "eval_scenarios or eval_environment were given, and eval_steps=0 never plays them: "
                "set eval_steps above 0, or leave them out"
            )
        self._agent = agent
        self._environment = environment or training_environment
        self._reward_function = reward_function
        self._config = config
        own = list(scenarios) or list(self._environment.scenarios)
        count = config.eval_max_scenarios
        self._scenarios: list[Scenario | None] = list(own[:count]) or [None] * count
        if config.eval_steps and not is_held_out:
            _log.warning(
                "eval_steps=%d, and no scenarios were held out: eval/... is measured on the first "
                "%d scenarios that are trained on. Pass eval_scenarios or eval_environment to "
                "measure what the policy does with what it never saw",
                config.eval_steps,
                len(self._scenarios),
            )

    def is_due(self, step: int, *, is_last_step: bool) -> bool:
        """True after step `step` (from 1) where `eval_steps` asks for it, and after the last."""
        every = self._config.eval_steps
        return every > 0 and (is_last_step or step % every == 0)

    async def measure(self) -> dict[str, float]:
        """Play and score; the numbers as `eval/...`.

        `eval/reward/mean`, `/std` over the conversations, `eval/reward/parts/<part>`, what
        `rollout_statistics` counts, and `seconds/eval`.

        Raises:
            RolloutError: every conversation failed.
            RewardError: a reward function raised or gave no number, or none is finite.
        """
        started, states = time.perf_counter(), random_states()
        try:
            groups = await collect_groups(
                self._agent,
                self._environment,
                self._scenarios,
                num_generations=1,
                seed=derive_seed(self._config.seed, "held out"),
            )
            await score_groups(groups, self._reward_function, tolerant=True)
        finally:
            # environments and rewards may draw from the global generators, as in training
            restore_random_states(states)
        check_some_have_rewards(groups, self._reward_function)
        played = [one for group in groups for one in group.trajectories if one.has_reward]
        rewards = [one.episode_reward for one in played]
        numbers = {"reward/mean": fmean(rewards), "reward/std": pstdev(rewards)}
        numbers |= {f"reward/parts/{part}": mean for part, mean in part_means(played).items()}
        numbers |= rollout_statistics(groups)
        measured = {f"eval/{name}": value for name, value in numbers.items()}
        return measured | {"seconds/eval": time.perf_counter() - started}
