"""What trials are scored on: conversations that were not trained on.

Owns the split of an environment's scenarios and the measures of a policy on a part of them. Whole
intents move, as in the data's own splits: other words for the same matter would not tell a policy
that learned from one that remembers.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from stateset_agents.core.agent import MultiTurnAgent
from stateset_agents.core.environment import Environment, Scenario
from stateset_agents.core.reward import RewardFunction
from stateset_agents.core.seeds import derive_seed
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.rollout.collect import collect_groups
from stateset_agents.rollout.scoring import check_some_have_rewards, part_means, score_groups
from stateset_agents.rollout.statistics import rollout_statistics
from stateset_agents.training.hpo.config import REWARD

# Conversations of an environment that has no list of scenarios and chooses them itself.
CHOSEN_BY_ENVIRONMENT = 16


@dataclass(frozen=True)
class Validation:
    """What a trained policy is scored on.

    Attributes:
        environment: who it talks to; each scoring plays a copy.
        samples: conversations for each scenario.
        description: in words, for the summary and the report.
    """

    environment: Environment
    samples: int
    description: str

    async def score(
        self, agent: MultiTurnAgent, reward_function: RewardFunction, seed: int
    ) -> dict[str, float]:
        """Measures of the agent: `reward` and `parts/NAME`, the means over conversations that did
        not fail and have a finite reward; `answer_tokens`, the mean of an answer;
        `failed`, the share of conversations that failed or have none.

        Raises:
            RolloutError: every conversation failed.
            RewardError: no reward is finite, or the reward function raised.
        """
        environment = copy.deepcopy(self.environment)
        scenarios: Sequence[Scenario | None] = list(environment.scenarios)
        groups = await collect_groups(
            agent,
            environment,
            scenarios or [None] * CHOSEN_BY_ENVIRONMENT,
            num_generations=self.samples,
            seed=seed,
        )
        await score_groups(groups, reward_function, tolerant=True)
        check_some_have_rewards(groups, reward_function)
        played = [one for group in groups for one in group.trajectories]
        scored = [one for one in played if one.has_reward]
        return {
            REWARD: fmean(one.episode_reward for one in scored),
            **{f"parts/{part}": mean for part, mean in part_means(scored).items()},
            "answer_tokens": rollout_statistics(groups)["rollout/answer_tokens_mean"],
            "failed": 1 - len(scored) / len(played),
        }


def split_off_validation(
    environment: Environment, share: float, samples: int, seed: int
) -> tuple[Environment, Validation]:
    """Part an environment into what is trained on and what is scored on.

    Where a single scenario (or intent) or none is listed, both are the whole environment and only
    the seeds differ; the description says so.
    """
    unit = "intent" if all(one.get("intent") for one in environment.scenarios) else "id"
    units = sorted({str(one.get(unit)) for one in environment.scenarios})
    if len(units) < 2:
        words = "the training scenarios with other seeds, because there is no second one"
        return environment, Validation(environment, samples, words)
    random.Random(derive_seed(seed, "validation part")).shuffle(units)
    count = min(len(units) - 1, max(1, round(share * len(units))))
    chosen = set(units[:count])

    def part(validation: bool) -> Environment:
        copied = copy.deepcopy(environment)
        copied.scenarios = [
            one for one in environment.scenarios if (str(one.get(unit)) in chosen) == validation
        ]
        return copied

    held = part(True)
    words = (
        f"{len(held.scenarios)} scenarios: {count} whole intents of {len(units)}, not trained on"
        if unit == "intent"
        else f"{count} of {len(units)} scenarios, not trained on"
    )
    return part(False), Validation(held, samples, words)


def given_validation(environment: Environment, validation: Environment, samples: int) -> Validation:
    """A validation part of the caller's.

    Raises:
        ConfigurationError: scenarios or intents that are trained on as well.
    """
    problems = []
    for key in ("id", "intent"):
        trained = {one.get(key) for one in environment.scenarios} - {None}
        both = sorted(str(one) for one in trained & {one.get(key) for one in validation.scenarios})
        if both:
            problems.append(
                f"validation part: {key} {', '.join(both[:5])} is trained on as well; trials would "
                "be scored on what they remember: keep whole intents apart"
            )
    if problems:
        raise ConfigurationError(problems)
    words = f"{len(validation.scenarios)} scenarios of a part of its own, not trained on"
    return Validation(validation, samples, words)
