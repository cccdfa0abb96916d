"""The training loop: play, score, compare, batch, step, hand the weights over, look, save.

Owns the order of a run. It does not know which algorithm it runs, how conversations are played,
what a resumed run needs (`run_state.py`), nor where metrics go.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stateset_agents import debug
from stateset_agents.core.agent import MultiTurnAgent
from stateset_agents.core.environment import Environment, Scenario
from stateset_agents.core.reward import RewardFunction
from stateset_agents.core.trajectory import MultiTurnTrajectory, TrajectoryGroup
from stateset_agents.exceptions import CheckpointError
from stateset_agents.tracking.reports import check_installed, open_reports
from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.batching import step_rows
from stateset_agents.training.callbacks import TrainingCallback, in_calling_order
from stateset_agents.training.checkpoint import digest_weights, load_checkpoint, save_checkpoint
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.critic import config_with_value_function, make_critic
from stateset_agents.training.debug_checks import check_batch, tell_conversations
from stateset_agents.training.demonstrations import Demonstration, demonstration_batch
from stateset_agents.training.held_out import HeldOutEvaluation
from stateset_agents.training.metrics import (
    reward_metrics,
    rollout_metrics,
    row_metrics,
    with_rates,
)
from stateset_agents.training.objective import imitation_of
from stateset_agents.training.optimizer_state import optimizer_tensors
from stateset_agents.training.policy import Policy
from stateset_agents.training.policy_model import load_policy_model
from stateset_agents.training.preferences import Preference, PreferencePlayer
from stateset_agents.training.processes import ALONE, Processes, Weights
from stateset_agents.training.random_states import seed_of_process
from stateset_agents.training.reference_cache import ReferenceCache
from stateset_agents.training.rollouts import RolloutPlayer, StepRollout, timed
from stateset_agents.training.run_state import (
    RunState,
    answers,
    checkpoint_of,
    restore,
    run_fingerprint,
)
from stateset_agents.training.shaping import shape_rewards
from stateset_agents.training.step import Learner, learning_rate, make_learner, train_step
from stateset_agents.training.step_batch import make_step_batch
from stateset_agents.training.trainer_checks import (
    check_demonstrations,
    check_parts,
    check_preferences,
    check_rows,
    sampling_warning,
    tell_if_it_starts_over,
)
from stateset_agents.training.update import update

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stateset_agents.core.value_function import ValueFunction
    from stateset_agents.tracking.loggers import MetricLogger


# Imitation steps over which the learning rate rises from 0.
WARM_START_RISE = 3

_log = logging.getLogger(__name__)


class Trainer:
    """Trains an agent's model on conversations in an environment.

    The trainer has the model twice: the policy that is updated, and the engine's copy that speaks,
    which gets the new weights after every step. The agent that was passed in is the trained one.

    What goes wrong in a part of a step costs that part and is counted. A conversation that failed
    (`rollout/failed`), or whose reward is NaN or infinite (`reward/nonfinite`), is left out, of the
    baseline too. One that is empty, its stop token sampled at once, trains on that token; one in
    which nothing was sampled has no row (`rows/empty_trajectories`). What lies beyond
    `max_completion_length` is not trained on (`rows/cut_tokens`). Where the baseline is the
    group's, equal rewards teach nothing (`reward/groups_without_spread`); a step without a row that
    teaches leaves weights and optimizer alone (`rows/trained` is 0 and there are no `policy/...`).
    Where nothing at all is left, training ends: see `train`.

    Args:
        agent: speaks with the trained weights afterwards.
        environment: who it talks to.
        reward_function: what a conversation is worth.
        config: all settings; a copy is kept.
        logger: gets the metrics of every `logging_steps`, beside what `config.report_to` names.
        fingerprint: digests that tell this run's checkpoints from another's, of anything that
            decides the result and that the trainer cannot see (a reward's weights).
        demonstrations: what `warm_start_steps` imitates.
        eval_scenarios: what `eval_steps` plays, see `held_out.HeldOutEvaluation`.
        eval_environment: in which it does.
        value_function: makes a critic the baseline of any algorithm. Advantages are those of its
            `advantages`, by GAE with its `gamma` and `gae_lambda` from one sampled token
            (`value_level: turn`: from one answer) of a conversation to the next, instead of the
            distance to the group's mean; with `scale_advantages` they are whitened over the step.
            It reads the policy's last hidden states and is trained beside the policy on the
            returns, its weights are in the checkpoints, and the loss stays the algorithm's.
        preferences: what `pairs_from: preferences` trains on; then nothing is played.
        processes: those that train together, see `distributed.DistributedTrainer`.

    Attributes:
        step: batches of conversations done, `total_steps` in all.
        groups: those of the last step, with rewards.
        best: the highest `reward/mean` so far and its step, None before the first.
        stop_reason: why training ended early, None otherwise.

    Raises:
        ConfigurationError: settings of agent and training that contradict each other, a warm start
            without demonstrations, a value function beside settings for another, or preference
            pairs where none are read, and none where they are.
    """

    def __init__(
        self,
        agent: MultiTurnAgent,
        environment: Environment,
        reward_function: RewardFunction,
        config: TrainingConfig,
        *,
        logger: MetricLogger | None = None,
        fingerprint: Mapping[str, str] | None = None,
        demonstrations: Sequence[Demonstration] = (),
        eval_scenarios: Sequence[Scenario] = (),
        eval_environment: Environment | None = None,
        value_function: ValueFunction | None = None,
        preferences: Sequence[Preference] = (),
        processes: Processes = ALONE,
    ) -> None:
        debug.apply()
        check_parts(agent, environment, reward_function)
        check_installed(config.reports)
        check_demonstrations(config, demonstrations)
        self.agent = agent
        self.environment = environment
        self.reward_function = reward_function
        self.config = config.model_copy(deep=True)
        self._value_function = value_function
        if value_function is not None:
            self.config = config_with_value_function(self.config, value_function)
        self.logger = logger
        self.step = 0
        self.groups: list[TrajectoryGroup] = []
        self.best: tuple[float, int] | None = None
        self.stop_reason: str | None = None
        self.demonstrations = tuple(demonstrations)
        self._extra_fingerprint = dict(fingerprint or {})
        self._fingerprint: dict[str, str] | None = None
        self._callbacks: list[TrainingCallback] = []
        self._learner: Learner | None = None
        self._agent_speaks = False
        check_preferences(self.config, preferences)
        self.preferences = tuple(preferences)
        self._processes = processes
        self._player: RolloutPlayer | PreferencePlayer = (
            PreferencePlayer(self.preferences, self.config, agent)
            if preferences
            else RolloutPlayer(
                agent, environment, reward_function, self.config, self._tell_episode, processes
            )
        )
        self._held_out = HeldOutEvaluation(
            agent,
            environment,
            reward_function,
            self.config,
            scenarios=eval_scenarios,
            environment=eval_environment,
        )
        # The next step's conversations, where they were played before this step's update.
        self._ahead: StepRollout | None = None
        self._warned_of_sampling = False
        self._is_between_steps = True

    # --- what callbacks and callers use ----------------------------------------------------------

    @property
    def total_steps(self) -> int:
        """Batches of conversations in the whole run."""
        return self.config.total_steps

    @property
    def is_last_step(self) -> bool:
        """True when no step follows the present one."""
        return self.step >= self.total_steps or self.stop_reason is not None

    @property
    def policy(self) -> Policy:
        """The policy that is trained; loaded at first use."""
        return self.learner.policy

    @property
    def learner(self) -> Learner:
        """What a step works with: policy, critic, optimizer; loaded at first use."""
        return self._ready()

    @property
    def fingerprint(self) -> dict[str, str]:
        """Digests of what decides this run, by part, as far as the trainer sees it: of code, and of
        settings that environment and rewards have beside the scenarios, it does not.
        """
        self._ready()
        assert self._fingerprint is not None  # _ready() has set it
        return self._fingerprint

    def stop(self, reason: str) -> None:
        """End training after this step."""
        self.stop_reason = reason

    def save_checkpoint(self, folder: Path | str, *, keep: int | None = None) -> Path:
        """Write `folder/step_<n>` and drop the oldest beyond `keep` (None: `save_total_limit`).

        Raises:
            CheckpointError: it could not be written, or a step's update is under way or was cut
                off; those before it are whole.
        """
        if not self._is_between_steps:
            raise CheckpointError(
                f"the update of step {self.step + 1} is under way or was cut off, and a run goes "
                "on from between two steps only: resume from a checkpoint before it, or keep the "
                "weights as they are now by save_policy"
            )
        learner = self._ready()
        saved = checkpoint_of(
            RunState(self.step, self.best, self.stop_reason, self._ahead),
            learner,
            tensors=self._whole_tensors(learner),
            fingerprint=self.fingerprint,
            callbacks=self._callbacks,
            processes=self._processes,
        )
        limit = self.config.save_total_limit if keep is None else keep
        return save_checkpoint(Path(folder), saved, keep=limit)

    def _whole_tensors(self, learner: Learner) -> tuple[Weights, Weights]:
        """Of weights and of optimizer."""
        trainable = learner.trainable
        return dict(trainable), optimizer_tensors(learner.optimizer, list(trainable))

    def save_policy(self, folder: Path | str) -> None:
        """Write the adapter (PEFT's format) or the whole model (transformers' format)."""
        self.policy.save(folder)

    async def close(self) -> None:
        """Free the engine's memory; the agent cannot speak after it."""
        if self._agent_speaks:
            await self.agent.engine.aclose()

    # --- the loop --------------------------------------------------------------------------------

    async def train(
        self,
        callbacks: Sequence[TrainingCallback] | None = None,
        resume_from: Path | str | None = None,
    ) -> MultiTurnAgent:
        """Train to the end and return the agent, which speaks with the trained weights.

        Args:
            callbacks: called between steps, see `callbacks.py`.
            resume_from: a checkpoint, or a folder whose newest one of this run is taken. What
                follows is, bit for bit on the same machine, what would have followed it without the
                interruption, as far as environment and rewards draw random numbers from the global
                generators or from their arguments. (With `off_policy_steps` they run beside the
                update, whose dropout draws from torch's: let them draw from the others.)

        Raises:
            CheckpointError: `resume_from` holds no checkpoint of this run.
            TrainingError: the loss is not finite, or nothing of a step can be trained on.
            RolloutError: every episode of a step failed.
            RewardError: a reward function raised or gave no number, or none of a step's rewards is
                finite.
        """
        self._callbacks = in_calling_order(callbacks or [])
        await self.agent.initialize()
        self._agent_speaks = True
        learner = self._ready()
        if resume_from is not None:
            self._restore(learner, Path(resume_from))
        else:
            tell_if_it_starts_over(self.agent, self)
            # what dropout draws from: else it depends on whatever the process did before
            torch.manual_seed(seed_of_process(self.config.seed, self._processes.rank))
            await self._warm_start(learner)
        self.agent.engine.update_weights(learner.policy.named_merged_weights())
        with self._first_acts():
            for callback in self._callbacks:
                await callback.on_train_start(self)
        settings = {"train": self.config.model_dump(), "agent": self.agent.config.model_dump()}
        with self._processes.first_only(open_reports, self.config.report_plan(settings)) as reports:
            while not self.is_last_step:
                metrics = await self._run_step(learner)
                self.step += 1
                self._is_between_steps = True
                self._keep_best(metrics)
                with self._first_acts():
                    if reports is not None:
                        await self._tell_step(metrics, reports)
        with self._first_acts():
            for callback in self._callbacks:
                await callback.on_train_end(self)
        return self.agent

    async def _tell_step(self, metrics: dict[str, float], reports: MetricLogger) -> None:
        """What was held out, callbacks, logger and reports, then the callbacks that run last."""
        if self._held_out.is_due(self.step, is_last_step=self.is_last_step):
            metrics |= await self._held_out.measure()
        for callback in self._callbacks:
            if not callback.runs_last:
                await callback.on_step_end(self, metrics)
        is_due = self.step % self.config.logging_steps == 0 or "eval/reward/mean" in metrics
        if is_due or self.is_last_step:
            reports.log(self.step, metrics)
            if self.logger:
                self.logger.log(self.step, metrics)
        for callback in self._callbacks:
            if callback.runs_last:
                await callback.on_step_end(self, metrics)

    @contextmanager
    def _first_acts(self) -> Iterator[None]:
        """Callbacks and logger are the first process's; the others learn whether to stop."""
        with self._processes.first_acts(self._answers()):
            yield
        self.stop_reason = self._processes.agreed(self.stop_reason)

    async def _warm_start(self, learner: Learner) -> None:
        """Imitate the demonstrations. No checkpoint falls into it: killed, it is done again."""
        imitation = replace(learner, objective=imitation_of(learner.objective), critic=None)
        tokenizer = self.agent.engine.tokenizer
        for step in range(self.config.warm_start_steps):
            batch = demonstration_batch(self.demonstrations, step, tokenizer, self.config)
            rate = self.config.learning_rate * min(1.0, (step + 1) / WARM_START_RISE)
            result = train_step(imitation, batch, rate=rate)
            loss = -float(result.logprobs.sum() / batch.loss_mask.sum())
            for callback in self._callbacks:
                await callback.on_warm_start_step(self, step + 1, loss)

    async def _run_step(self, learner: Learner) -> dict[str, float]:
        """One batch of conversations, from scenarios to new weights in the engine."""
        config, seconds, started = self.config, dict[str, float](), time.perf_counter()

        # 1. conversations and their rewards, now or from a step ahead
        staleness = 0 if self._ahead is None else 1
        rollout = self._ahead or await self._player.play(self.step)
        self.groups = rollout.groups
        tell_conversations(self.step + 1, self.groups)
        # 2. rows, and what length costs
        rows = step_rows(self.groups, config)
        check_rows(rows, config)
        shaped = shape_rewards(
            rows,
            max_new_tokens=self.agent.config.max_new_tokens,
            buffer=learner.objective.overlong_buffer,
        )
        # 3. batch
        batch = make_step_batch(
            shaped,
            learner.objective,
            config,
            pad_token_id=self.agent.engine.tokenizer.pad_token_id,
            temperature=self.agent.config.temperature,
        )
        check_batch(batch, len(learner.policy.head_weight))
        # 4. optimizer steps, the next step's conversations beside them if they may be stale
        self._is_between_steps = False
        policy_metrics = await self._update_and_play_ahead(learner, batch, seconds)
        self._warn_of_sampling(policy_metrics, staleness)
        # 5. the engine speaks with the new weights
        with timed(seconds, "push_weights"):
            self.agent.engine.update_weights(learner.policy.named_merged_weights())

        seconds |= {**rollout.seconds, "step": time.perf_counter() - started}
        return with_rates(
            {
                **reward_metrics(self.groups, rows, shaped),
                **rollout_metrics(rollout, staleness),
                **row_metrics(rows, batch),
                **{f"policy/{name}": value for name, value in policy_metrics.items()},
            },
            seconds,
        )

    async def _update_and_play_ahead(
        self, learner: Learner, batch: TrainingBatch, seconds: dict[str, float]
    ) -> dict[str, float]:
        """Update; with `off_policy_steps` in a thread, while the engine, whose weights stay what
        they are until both have ended, plays the next step's conversations.
        """
        self._ahead = None
        if not self.config.off_policy_steps or self.step + 1 >= self.total_steps:
            return self._update(learner, batch, seconds)
        playing = asyncio.create_task(self._player.play(self.step + 1))
        # no task: one that is cancelled ends at once, and leaves its thread to change the weights
        updating = asyncio.get_running_loop().run_in_executor(
            None, self._update, learner, batch, seconds
        )
        try:
            metrics = await asyncio.shield(updating)
            self._ahead = await playing
        except BaseException:
            playing.cancel()
            await _ended(playing)
            await _ended(updating)
            raise
        return metrics

    def _update(
        self, learner: Learner, batch: TrainingBatch, seconds: dict[str, float]
    ) -> dict[str, float]:
        with timed(seconds, "update"):
            return update(learner, batch, learning_rate(self.step, self.config))

    def _warn_of_sampling(self, metrics: Mapping[str, float], staleness: int) -> None:
        """Once a run. Where the policy has moved on since, a difference is to be expected."""
        if staleness or self._warned_of_sampling:
            return
        warning = sampling_warning(self.step + 1, metrics, self.config)
        if warning:
            self._warned_of_sampling = True
            _log.warning("%s", warning)

    # --- inside ----------------------------------------------------------------------------------

    def _tell_episode(self, trajectory: MultiTurnTrajectory) -> None:
        for callback in self._callbacks:
            callback.on_episode(self, trajectory)

    def _keep_best(self, metrics: Mapping[str, float]) -> None:
        reward = metrics["reward/mean"]
        if self.best is None or reward > self.best[0]:
            self.best = (reward, self.step)

    def _answers(self) -> dict[str, Callable[[], Any]]:
        """What the first process may ask of this one while it acts."""
        return answers()

    def _ready(self) -> Learner:
        """Load the policy at first use: making a trainer stays cheap."""
        if self._learner is None:
            model, computed = load_policy_model(self.agent.config, self.config)
            decided = run_fingerprint(
                self.config,
                self.agent.config,
                self.environment,
                base_model=digest_weights(model),
                demonstrations=self.demonstrations,
                preferences=self.preferences,
                value_function=self._value_function,
            )
            self._fingerprint = {**decided, **self._extra_fingerprint}
            policy = self._make_policy(model, computed)
            name = self.agent.config.model_name
            critic = make_critic(policy, self.config, name, self._value_function)
            self._learner = make_learner(policy, self.config, critic, self._processes)
            self._learner.reference_cache = ReferenceCache() if self.preferences else None
        return self._learner

    def _make_policy(self, model: PreTrainedModel, config: TrainingConfig) -> Policy:
        return Policy(model, config)

    def _restore(self, learner: Learner, path: Path) -> None:
        saved = load_checkpoint(path, self.fingerprint)
        run = restore(
            saved,
            learner,
            seed=self.config.seed,
            callbacks=self._callbacks,
            processes=self._processes,
        )
        self.step, self.best = run.step, run.best
        self.stop_reason, self._ahead = run.stop_reason, run.ahead
        self._is_between_steps = True


async def _ended(work: asyncio.Future[Any]) -> None:
    """Wait until it has, whatever comes of it and however often the one who waits is cancelled."""
    while not work.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([work])
    if not work.cancelled():
        work.exception()  # asked for, so that the loop does not report it as lost
