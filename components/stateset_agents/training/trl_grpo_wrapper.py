"""TRL's `GRPOTrainer` over our agents, environments and rewards: the guide's
`TRLGRPOTrainerWrapper`.

Owns how a step's conversations reach TRL (by `rollout_func`, its hook for that) and how its weights
reach the agent. Advantages, loss, optimizer and checkpoints are TRL's. It does not know how
conversations are played, nor what a setting is called there (`trl_config.py`).

Notation: B conversations of a step.
"""

from __future__ import annotations

import asyncio
import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateset_agents.core.agent import MultiTurnAgent
from stateset_agents.core.environment import Environment
from stateset_agents.core.reward import RewardFunction
from stateset_agents.core.trajectory import TrajectoryGroup
from stateset_agents.exceptions import ConfigurationError, TrainingError
from stateset_agents.training.batching import StepRow, step_rows
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.objective import objective_of
from stateset_agents.training.rollouts import RolloutPlayer
from stateset_agents.training.shaping import shape_rewards
from stateset_agents.training.trainer_checks import check_agent
from stateset_agents.training.trl_config import grpo_settings, import_trl
from stateset_agents.training.trl_models import (
    adapter_settings,
    computes_in_bf16,
    load_for_trl,
    merged_weights,
    runs_on_cpu,
    say_less,
)

if TYPE_CHECKING:
    from stateset_agents.tracking.loggers import MetricLogger


class TRLGRPOTrainerWrapper:
    """Trains an agent with TRL's own GRPO trainer.

    Conversations are played by the agent's engine, in the order and with the seeds of `Trainer`:
    the first step of both is the same. A conversation is one row, what the environment said is
    masked. One in which the context was rewritten cannot be a row of TRL's, and ends training.

    Attributes:
        settings: what TRL's `GRPOConfig` is made with.
        trainer: TRL's trainer, None before `train`.
        groups: the last step's conversations, with rewards.
    """

    def __init__(
        self,
        agent: MultiTurnAgent,
        environment: Environment,
        reward_fn: RewardFunction,
        config: TrainingConfig,
        *,
        output_dir: Path | str = "outputs/trl",
        callbacks: Sequence[Any] = (),
        logger: MetricLogger | None = None,
        trl_settings: Mapping[str, Any] | None = None,
    ) -> None:
        """`callbacks` are transformers' `TrainerCallback`s. `trl_settings` are keywords of
        `GRPOConfig`, over what is derived from `config`. TRL's checkpoints go to `output_dir`.

        Raises:
            ConfigurationError: TRL is not installed, or settings that it has no counterpart for.
        """
        import_trl()
        _check_agent(agent)
        self.agent = agent
        self.environment = environment
        self.reward_function = reward_fn
        self.config = config.model_copy(deep=True)
        self.settings = grpo_settings(
            config, temperature=agent.config.temperature, overrides=trl_settings or {}
        )
        self.trainer: Any = None
        self.groups: list[TrajectoryGroup] = []
        self._output_dir = Path(output_dir)
        self._callbacks = list(callbacks)
        self._logger = logger
        self._player = RolloutPlayer(agent, environment, reward_fn, self.config, lambda _: None)

    async def train(self, resume_from: Path | str | None = None) -> MultiTurnAgent:
        """Train to the end and return the agent, which speaks with the trained weights.

        Args:
            resume_from: a checkpoint of TRL's (`checkpoint-<n>`).

        Raises:
            TrainingError: a conversation that cannot be a row of TRL's.
            StateSetError: what playing and scoring conversations raises.
        """
        await self.agent.initialize()
        self.trainer = self._make_trainer(asyncio.get_running_loop())
        resume = None if resume_from is None else str(resume_from)
        await asyncio.to_thread(self.trainer.train, resume_from_checkpoint=resume)
        self._push_weights()
        return self.agent

    def save(self, folder: Path | str) -> None:
        """Write the adapter (PEFT's format) or the whole model, and the tokenizer.

        Raises:
            ConfigurationError: nothing has been trained.
        """
        if self.trainer is None:
            raise ConfigurationError("there is nothing to save yet: await train() first")
        self.trainer.model.save_pretrained(folder)
        self.agent.tokenizer.hf.save_pretrained(folder)

    # --- inside ----------------------------------------------------------------------------------

    def _make_trainer(self, loop: asyncio.AbstractEventLoop) -> Any:
        trl = import_trl()
        from datasets import Dataset

        def play(prompts: list[Any], trainer: Any) -> dict[str, Any]:
            # TRL's trainer runs in a thread; the engine lives where the caller's loop is
            playing = asyncio.run_coroutine_threadsafe(self._play(prompts), loop)
            return playing.result()

        args = trl.GRPOConfig(
            output_dir=str(self._output_dir),
            use_cpu=runs_on_cpu(self.agent),
            **{"bf16": computes_in_bf16(self.agent, self.config), **self.settings},
        )
        if args.world_size > 1:
            raise ConfigurationError(
                f"TRL would share a step over {args.world_size} processes without keeping groups "
                "whole: start one, or use DistributedTrainer"
            )
        visits = range(self.config.total_steps * self.config.groups_per_step)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
            trainer = trl.GRPOTrainer(
                model=load_for_trl(self.agent, self.config),
                reward_funcs=_episode_rewards,
                args=args,
                # what a scenario says is the environment's to tell: TRL is given its number
                train_dataset=Dataset.from_dict({"prompt": [str(visit) for visit in visits]}),
                processing_class=copy.deepcopy(self.agent.tokenizer.hf),
                rollout_func=play,
                callbacks=self._callbacks,
                peft_config=adapter_settings(self.config),
            )
        say_less(trainer, self._logger)
        return trainer

    def _push_weights(self) -> None:
        self.agent.engine.update_weights(
            merged_weights(self.trainer.accelerator.unwrap_model(self.trainer.model))
        )

    async def _play(self, prompts: list[Any]) -> dict[str, Any]:
        """A step's conversations in TRL's form, in the order of `prompts`: visit numbers, each as
        often as its group is large.
        """
        step = self._step_of([int(prompt) for prompt in prompts])
        self._push_weights()
        rollout = await self._player.play(step)
        self.groups = rollout.groups
        return _rollout_of(self.groups, self.config, self.agent)

    def _step_of(self, visits: list[int]) -> int:
        groups, generations = self.config.groups_per_step, self.config.num_generations
        step = visits[0] // groups
        expected = [
            visit for visit in range(step * groups, (step + 1) * groups) for _ in range(generations)
        ]
        if visits != expected:
            raise TrainingError(
                f"TRL asks for the visits {sorted(set(visits))}, and one step is "
                f"{groups} scenarios of {generations} conversations each: leave "
                "generation_batch_size and steps_per_generation out of trl_settings"
            )
        return step


def _rollout_of(
    groups: Sequence[TrajectoryGroup], config: TrainingConfig, agent: MultiTurnAgent
) -> dict[str, Any]:
    """What `rollout_func` returns. A conversation that failed, or has no row, is one masked token;
    without a finite reward it has None, which TRL leaves out of the baseline.
    """
    found = step_rows(groups, config)
    shaped = shape_rewards(
        found,
        max_new_tokens=agent.config.max_new_tokens,
        buffer=objective_of(config).overlong_buffer,
    )
    rows: dict[int, StepRow] = {}
    for row in found.rows:
        if row.trajectory in rows:
            raise TrainingError(
                "a conversation's context was rewritten between two of its turns, which makes it "
                "more than one row, and TRL has one for each conversation: switch off context "
                "compression, leave the history as it is in generate_response, or train with "
                "MultiTurnGRPOTrainer"
            )
        rows[row.trajectory] = row
    padding = agent.tokenizer.pad_token_id
    result: dict[str, Any] = {
        name: [] for name in ("prompt_ids", "completion_ids", "logprobs", "env_mask")
    }
    result["episode_reward"] = []
    number = 0
    for group in groups:
        for trajectory in group.trajectories:
            counts = trajectory.has_reward and not trajectory.failed
            row_of = rows.get(number) if counts else None
            for name, values in _split(row_of, padding).items():
                result[name].append(values)
            result["episode_reward"].append(float(shaped.rewards[number]) if counts else None)
            number += counts
    return result


def _split(row: StepRow | None, padding: int) -> dict[str, list[Any]]:
    """The prompt ends where the first sampled token stands."""
    if row is None:
        return {
            "prompt_ids": [padding],
            "completion_ids": [padding],
            "logprobs": [0.0],
            "env_mask": [0],
        }
    opening = row.loss_mask.index(True)
    return {
        "prompt_ids": list(row.token_ids[:opening]),
        "completion_ids": list(row.token_ids[opening:]),
        "logprobs": list(row.sampling_logprobs[opening:]),
        "env_mask": [int(sampled) for sampled in row.loss_mask[opening:]],
    }


def _episode_rewards(
    completions: list[Any], episode_reward: list[float | None], **_: Any
) -> list[float | None]:
    """TRL's reward function: they were computed with the conversations."""
    return episode_reward


def _check_agent(agent: MultiTurnAgent) -> None:
    check_agent(agent)
    if agent.config.enable_context_compression:
        raise ConfigurationError(
            "enable_context_compression=True: a compressed conversation is more than one row, and "
            "TRL has one for each; train with MultiTurnGRPOTrainer"
        )
