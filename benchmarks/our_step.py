"""Our side: one step of `Trainer`, as anyone would run it.

A child of `processes.Side`. Settings: `folder`, `workload`, `training` (over the defaults below).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.processes import Requests
from benchmarks.rewards import spread_reward
from benchmarks.workloads import EndlessTokenizer, Workload, scenarios
from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.core.reward import RewardFunction
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.inference.loading import load_model, load_tokenizer
from stateset_agents.inference.transformers_engine import TransformersEngine
from stateset_agents.training.callbacks import TrainingCallback
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.trainer import Trainer

# As TRL does by default: no KL term, and none measured.
_DEFAULTS: dict[str, Any] = {
    "algorithm": "grpo",
    "use_lora": True,
    "lora_r": 16,
    "lora_alpha": 32,
    "learning_rate": 1e-6,
    "warmup_ratio": 0.0,
    "kl_coefficient": 0.0,
    "kl_sample_rows": 0,
    "num_episodes": 10_000,
    "gradient_accumulation_steps": 1,
}


def training_config(workload: Workload, changed: Mapping[str, Any]) -> TrainingConfig:
    """What a step of the workload is trained with. Lengths are the workload's own, so that any
    model that can hold its conversations is one to measure with.
    """
    settings = {
        **_DEFAULTS,
        "max_prompt_length": workload.prompt_tokens,
        "max_completion_length": workload.conversation_tokens - workload.prompt_tokens + 1,
        "per_device_train_batch_size": workload.groups,
        "num_generations": workload.group,
    }
    return TrainingConfig(**{**settings, **changed})


class SpreadReward(RewardFunction):
    """A reward that costs nothing and differs within every group."""

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> float:
        """See `rewards.spread_reward`."""
        return spread_reward("".join(t.content for t in turns if t.role == "assistant"))


class AnswerEachStep(TrainingCallback):
    """Holds training until a step is asked for, and answers with the step's metrics."""

    def __init__(self, requests: Requests) -> None:
        self.requests = requests
        self.started = 0.0

    async def on_train_start(self, trainer: Trainer) -> None:
        """Ready."""
        self.requests.answer({"total_steps": trainer.total_steps})
        self._wait(trainer)

    async def on_step_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """One step is done."""
        seconds = {
            name.removeprefix("seconds/"): value
            for name, value in metrics.items()
            if name.startswith("seconds/")
        }
        self.requests.answer(
            {
                "seconds": time.perf_counter() - self.started,
                "rollout": seconds["rollout"],
                "logprobs": 0.0,
                "update": seconds["update"],
                "push_weights": seconds["push_weights"],
                "sampled_tokens": metrics["rollout/sampled_tokens"],
                "metrics": dict(metrics),
            }
        )
        self._wait(trainer)

    def _wait(self, trainer: Trainer) -> None:
        if self.requests.wait() is None:
            trainer.stop("no more steps are asked for")
        self.started = time.perf_counter()


async def main() -> None:
    """Train until nobody asks for another step."""
    requests = Requests()
    settings = requests.settings()
    workload = Workload(**settings["workload"])
    agent_config = AgentConfig(
        model_name=settings["folder"], max_new_tokens=workload.answer_tokens, temperature=1.0
    )
    tokenizer = EndlessTokenizer(load_tokenizer(settings["folder"]).hf)
    engine = TransformersEngine(load_model(settings["folder"]), tokenizer)
    environment = ConversationEnvironment(scenarios(workload, tokenizer), 2 * workload.turns)
    config = training_config(workload, settings.get("training", {}))
    trainer = Trainer(MultiTurnAgent(agent_config, engine), environment, SpreadReward(), config)
    await trainer.train(callbacks=[AnswerEachStep(requests)])


if __name__ == "__main__":
    asyncio.run(main())
