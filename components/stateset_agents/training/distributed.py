"""Training in several processes: the guide's `DistributedTrainer`.

Owns what a user asks for (GPUs, processes, a strategy), whether it can be had here, and how a run
goes in each process. It does not know how processes talk (`distributed_group.py`) or are started
(`distributed_workers.py`), nor how training goes (`trainer.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateset_agents.core.agent import MultiTurnAgent
from stateset_agents.core.environment import Environment, Scenario
from stateset_agents.core.reward import RewardFunction
from stateset_agents.core.trajectory import TrajectoryGroup
from stateset_agents.exceptions import CheckpointError, ConfigurationError, ProcessLostError
from stateset_agents.training.algorithms import ALGORITHMS
from stateset_agents.training.callbacks import TrainingCallback
from stateset_agents.training.checkpoint import differing_parts
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.demonstrations import Demonstration
from stateset_agents.training.distributed_group import ProcessGroup, Seat
from stateset_agents.training.distributed_workers import Workers, WorkOrder
from stateset_agents.training.objective import objective_of
from stateset_agents.training.optimizer_state import restore_optimizer
from stateset_agents.training.policy import Policy
from stateset_agents.training.processes import ALONE, Weights, whole
from stateset_agents.training.random_states import seed_generators, seed_of_process
from stateset_agents.training.step import Learner
from stateset_agents.training.trainer import Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stateset_agents.core.value_function import ValueFunction
    from stateset_agents.tracking.loggers import MetricLogger

STRATEGIES = ("ddp", "fsdp", "deepspeed")
_WHOLE_TENSORS = "whole tensors"


class DistributedTrainer(Trainer):
    """`Trainer` in several processes, with the result of one (docs/distributed.md).

    A step's scenarios are shared out, a group whole to one process; rewards are computed where a
    group was played. Every process then has all conversations and computes the same advantages,
    weights and metrics from them; the update's rows are shared out again by length, and gradients
    are added up. So the batch is the configuration's, however many processes there are, and a run
    may be resumed with another number of them.

    Started by torchrun or `accelerate launch` each process makes a trainer and awaits `train`.
    Otherwise this process is the first, and the others are started on this machine: agent,
    environment and reward are pickled to them, and a script's own `asyncio.run` stands under
    `if __name__ == "__main__":`.

    Callbacks, logger and checkpoints are the first process's. `TrainingCallback.on_episode` hears
    of another process's conversations when a step's have come together.
    """

    def __init__(
        self,
        agent: MultiTurnAgent,
        environment: Environment,
        reward_fn: RewardFunction,
        config: TrainingConfig,
        num_gpus: int | None = None,
        strategy: str = "ddp",
        *,
        num_processes: int | None = None,
        timeout_seconds: float = 1800.0,
        logger: MetricLogger | None = None,
        fingerprint: Mapping[str, str] | None = None,
        demonstrations: Sequence[Demonstration] = (),
        eval_scenarios: Sequence[Scenario] = (),
        eval_environment: Environment | None = None,
        value_function: ValueFunction | None = None,
        _seat: Seat | None = None,
    ) -> None:
        """`num_gpus` processes with a GPU each, or `num_processes` on processors; neither: every
        GPU that is visible, or one process. Under a launcher their number is the launcher's.
        `timeout_seconds` is how long a process waits for the others.

        Raises:
            ConfigurationError: more than there is, or settings that contradict each other.
        """
        seat = _seat or _find_seat(agent, num_gpus, num_processes, timeout_seconds)
        _check(seat, strategy, config, value_function)
        group = ProcessGroup(seat) if seat.count > 1 else None
        super().__init__(
            agent,
            environment,
            reward_fn,
            config,
            logger=logger if seat.rank == 0 else None,
            fingerprint=fingerprint,
            demonstrations=demonstrations,
            eval_scenarios=eval_scenarios if seat.rank == 0 else (),
            eval_environment=eval_environment if seat.rank == 0 else None,
            value_function=value_function,
            processes=group or ALONE,
        )
        self.strategy = strategy
        self.newest_checkpoint: Path | None = None
        self._group = group
        self._gathered: tuple[Weights, Weights] | None = None
        self._starts_others = _seat is None and not _is_launched()
        if group is not None and seat.rank == 0:
            group.on_groups = self._tell_groups

    async def train(
        self,
        callbacks: Sequence[TrainingCallback] | None = None,
        resume_from: Path | str | None = None,
    ) -> MultiTurnAgent:
        """As `Trainer.train`; in every process the agent speaks with the trained weights then.

        Raises:
            ConfigurationError: the processes were not given the same configuration and data.
            ProcessLostError: a process has ended or does not answer. Checkpoints that were written
                are whole.
            StateSetError: what `Trainer.train` raises.
        """
        group = self._group
        if group is None:
            return await super().train(callbacks, resume_from)
        resume_from = None if resume_from is None else Path(resume_from).absolute()
        if self.strategy == "fsdp":
            self._learner = None  # one that was made before the processes had joined is whole
        with self._others(group, resume_from), group.joined():
            self._check_alike(group)
            if self.strategy == "ddp":
                group.follow_first(self._ready().trainable.values())
            if group.rank > 0:
                # the first process's are the user's
                seed_generators(seed_of_process(self.config.seed, group.rank))
            agent = await super().train(callbacks if group.rank == 0 else None, resume_from)
            if self.strategy == "fsdp":
                self._gather_whole()
        if self.strategy == "fsdp":
            self._become_whole()
        return agent

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        return self._processes.rank

    @property
    def is_first(self) -> bool:
        """True in the process that logs and writes."""
        return self._processes.rank == 0

    def save_checkpoint(self, folder: Path | str, *, keep: int | None = None) -> Path:
        """As `Trainer.save_checkpoint`, in the first process.

        Raises:
            CheckpointError: this is not the first, or it could not be written.
        """
        if self._processes.rank > 0:
            raise CheckpointError(
                f"process {self._processes.rank} was asked for a checkpoint: the first one writes "
                "them, because the weights are everyone's"
            )
        self.newest_checkpoint = super().save_checkpoint(folder, keep=keep)
        return self.newest_checkpoint

    # --- inside ----------------------------------------------------------------------------------

    def _make_policy(self, model: PreTrainedModel, config: TrainingConfig) -> Policy:
        if self.strategy != "fsdp" or self._group is None or not self._group.is_joined:
            return super()._make_policy(model, config)
        from stateset_agents.training.distributed_sharding import ShardedPolicy

        return ShardedPolicy(model, config, count=self._group.count)

    def _answers(self) -> dict[str, Callable[[], Any]]:
        return {**super()._answers(), _WHOLE_TENSORS: self._gather_whole}

    def _whole_tensors(self, learner: Learner) -> tuple[Weights, Weights]:
        if not learner.policy.reduces_gradients:
            return super()._whole_tensors(learner)
        self._processes.ask(_WHOLE_TENSORS, self._gather_whole)
        assert self._gathered is not None  # _gather_whole has set it
        return self._gathered

    def save_policy(self, folder: Path | str) -> None:
        """As `Trainer.save_policy`, in the first process."""
        learner = self._ready()
        if not learner.policy.reduces_gradients:
            super().save_policy(folder)
            return
        weights, _ = self._whole_tensors(learner)
        learner.policy.model.save_pretrained(folder, state_dict=weights)

    def _gather_whole(self) -> None:
        """Every process at the same time; the first keeps them, on the processor."""
        parts = super()._whole_tensors(self._ready())
        weights, optimizer = (
            {name: whole(tensor.detach()).cpu() for name, tensor in tensors.items()}
            for tensors in parts
        )
        self._gathered = (weights, optimizer)

    def _become_whole(self) -> None:
        """When the processes have parted, the policy is a plain one with what was trained."""
        self._learner = None
        learner = self._ready()
        assert self._gathered is not None  # the last thing that they did together
        weights, optimizer = self._gathered
        learner.policy.load_trainable(weights)
        restore_optimizer(learner.optimizer, list(weights), optimizer)
        self._gathered = None

    @contextmanager
    def _others(self, group: ProcessGroup, resume_from: Path | None) -> Iterator[None]:
        """Start the other processes, unless a launcher has, and see them end."""
        if not self._starts_others:
            yield
            return
        order = WorkOrder(
            trainer=type(self),
            keywords={
                "agent": self.agent.with_own_engine(),
                "environment": self.environment,
                "reward_fn": self.reward_function,
                "config": self.config,
                "strategy": self.strategy,
                "fingerprint": self._extra_fingerprint,
                "demonstrations": self.demonstrations,
                "value_function": self._value_function,
            },
            resume_from=resume_from,
        )
        payload = order.packed()
        group.serve()
        workers = Workers(group.seat, payload)
        try:
            yield
        except ProcessLostError as error:
            raise ProcessLostError(self._what_happened(workers, error)) from error
        finally:
            workers.end()

    def _what_happened(self, workers: Workers, error: ProcessLostError) -> str:
        found = workers.what_happened()
        if not found:
            return str(error)
        checkpoint = (
            f"the newest checkpoint is {self.newest_checkpoint}, which is whole: give it to "
            "resume_from"
            if self.newest_checkpoint
            else "no checkpoint was written: give train a CheckpointCallback"
        )
        return (
            f"{'; '.join(found)}. Training ended after step {self.step} of {self.total_steps}; "
            f"{checkpoint}"
        )

    def _check_alike(self, group: ProcessGroup) -> None:
        """Before any work: every process computes the whole step's advantages by itself."""
        everyone = group.gather({**self.fingerprint, "strategy": self.strategy})
        problems = [
            f"process {rank} differs from the first in: {', '.join(parts)}"
            for rank, theirs in enumerate(everyone)
            if (parts := differing_parts(theirs, everyone[0]))
        ]
        if problems:
            raise ConfigurationError(
                [*problems, "give every process the same configuration, scenarios and base model"]
            )

    def _restore(self, learner: Learner, path: Path) -> None:
        super()._restore(learner, path)
        steps = self._processes.gather(self.step)
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"{path} gave the processes checkpoints of the steps {steps}: let all machines see "
                "one folder, or name a checkpoint step_<n> that each of them has"
            )

    def _tell_groups(self, groups: Sequence[TrajectoryGroup]) -> None:
        for group in groups:
            for trajectory in group.trajectories:
                self._tell_episode(trajectory)


def _is_launched() -> bool:
    """Torchrun and `accelerate launch` set both."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def _find_seat(
    agent: MultiTurnAgent, num_gpus: int | None, num_processes: int | None, timeout_seconds: float
) -> Seat:
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = agent.config.device_map
    problems = list(_problems(num_gpus, num_processes, gpus, device))
    if problems:
        raise ConfigurationError(problems)
    if not _is_launched():
        cpu = num_processes is not None or not gpus or device == "cpu"
        alone = num_gpus is None and device != "auto"
        count = num_processes or num_gpus or (1 if cpu or alone else gpus)
        return Seat(0, count, 0, port=0, cpu=cpu, timeout_seconds=timeout_seconds)
    count = int(os.environ["WORLD_SIZE"])
    asked = num_gpus if num_gpus is not None else num_processes
    if asked is not None and asked != count:
        raise ConfigurationError(
            f"{'num_gpus' if num_gpus is not None else 'num_processes'}={asked}, and the launcher "
            f"has started {count} processes: leave it out, or start as many"
        )
    wants_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true")
    return Seat(
        int(os.environ["RANK"]),
        count,
        int(os.environ.get("LOCAL_RANK", "0")),
        port=None,
        cpu=wants_cpu or num_processes is not None or not gpus or device == "cpu",
        timeout_seconds=timeout_seconds,
    )


def _problems(
    num_gpus: int | None, num_processes: int | None, gpus: int, device: str
) -> Iterator[str]:
    if num_gpus is not None and num_processes is not None:
        yield (
            f"num_gpus={num_gpus} and num_processes={num_processes}: give num_gpus for processes "
            "with a GPU each, or num_processes for processes on processors"
        )
    for name, value in (("num_gpus", num_gpus), ("num_processes", num_processes)):
        if value is not None and value < 1:
            yield f"{name}={value}: it is at least 1"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", num_gpus or 0)) if _is_launched() else num_gpus
    if num_gpus is not None and here is not None and here > gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        shown = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible!r})"
        yield (
            f"num_gpus={num_gpus}, and this machine shows {gpus}{shown}: ask for at most so many, "
            "or for processes without a GPU by num_processes (num_processes=2)"
        )
    if num_gpus is not None and num_gpus > 1 and device != "auto":
        yield (
            f"num_gpus={num_gpus} and the agent's device_map={device!r}: every process has a GPU "
            'of its own; set device_map="auto"'
        )
    if num_processes is not None and gpus and device != "cpu":
        yield (
            f"num_processes={num_processes} asks for processors, and the agent's "
            f'device_map={device!r} for a GPU: set device_map="cpu", or give num_gpus'
        )


def _check(
    seat: Seat, strategy: str, config: TrainingConfig, value_function: ValueFunction | None
) -> None:
    problems = []
    by_value = value_function is not None or objective_of(config).advantage_baseline == "value"
    if strategy == "fsdp" and by_value:
        problems.append(
            'strategy="fsdp" with a critic (advantage_baseline="value") is not built: set '
            'strategy="ddp"'
        )
    if strategy == "fsdp" and ALGORITHMS[config.algorithm].on_pairs:
        problems.append(
            f'strategy="fsdp" with algorithm={config.algorithm!r} is not built: every process goes '
            'through all pairs; set strategy="ddp"'
        )
    if strategy not in STRATEGIES:
        problems.append(f"strategy={strategy!r} is unknown; choose from {', '.join(STRATEGIES)}")
    if strategy == "deepspeed":
        problems.append(
            'strategy="deepspeed" is not built: weights, gradients and optimizer state are shared '
            'out by strategy="fsdp", which needs nothing but torch'
        )
    if strategy == "fsdp" and seat.count == 1:
        problems.append(
            'strategy="fsdp" shares weights out over processes, and there is one: ask for more, '
            'or set strategy="ddp"'
        )
    if strategy == "fsdp" and config.fp16:
        problems.append(
            'strategy="fsdp" with fp16=True is not built: set bf16=True, or strategy="ddp"'
        )
    if strategy == "fsdp" and config.use_lora:
        problems.append(
            'strategy="fsdp" with use_lora=True: an adapter is small, and the weights under it are '
            'not trained; set strategy="ddp"'
        )
    if config.groups_per_step < seat.count:
        problems.append(
            f"one step takes {config.groups_per_step} scenarios "
            f"(per_device_train_batch_size={config.per_device_train_batch_size} x "
            f"gradient_accumulation_steps={config.gradient_accumulation_steps}), and there are "
            f"{seat.count} processes: a scenario's group stays whole, so some would have nothing "
            "to play; raise one of the factors, or take fewer processes"
        )
    if problems:
        raise ConfigurationError(problems)
