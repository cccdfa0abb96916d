"""Small training runs on the tiny model, in this process or in one that kills itself.

Runs in processes come from a fork server that has imported the heavy modules once.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.core.reward import RewardFunction
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.training.callbacks import CheckpointCallback, TrainingCallback
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.demonstrations import Demonstration
from stateset_agents.training.trainer import Trainer

Weights = dict[str, torch.Tensor]

SCENARIOS: list[dict[str, Any]] = [
    {"id": f"order-{n}", "user_responses": [f"Where is order {n}?", "Thank you."]} for n in range(3)
]


class LettersE(RewardFunction):
    """The share of e: easy to raise, and different for nearly every answer."""

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> float:
        text = "".join(turn.content for turn in turns if turn.role == "assistant")
        return text.count("e") / max(1, len(text))


class FewLevels(LettersE):
    """The share of e in steps of 0.2: a small group is often without spread."""

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> float:
        return round(5 * await super().compute_reward(turns, context)) / 5


class MadeUp(RewardFunction):
    """Gives the values it was made with, one conversation after the other, again and again."""

    def __init__(self, *values: float) -> None:
        super().__init__(name="made up")
        self._values = itertools.cycle(values)

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> float:
        return next(self._values)


class Remembered:
    """A metric logger that keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, metrics: Any) -> None:
        self.steps.append((step, dict(metrics)))

    def close(self) -> None:
        """Nothing is held back."""


def make_agent(
    folder: Path, kind: type[MultiTurnAgent] = MultiTurnAgent, **settings: Any
) -> MultiTurnAgent:
    generation = {"max_new_tokens": 8, "temperature": 1.0, "torch_dtype": "float32"}
    return kind(AgentConfig(model_name=str(folder), **{**generation, **settings}))


def make_trainer(
    folder: Path,
    *,
    agent: type[MultiTurnAgent] = MultiTurnAgent,
    reward: RewardFunction | None = None,
    logger: Any = None,
    demonstrations: Sequence[Demonstration] = (),
    eval_scenarios: Sequence[dict[str, Any]] = (),
    eval_environment: ConversationEnvironment | None = None,
    **settings: Any,
) -> Trainer:
    defaults: dict[str, Any] = {
        "num_episodes": 4,
        "num_generations": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
        "use_lora": True,
        "bf16": False,
        "save_steps": 1,
        "logging_steps": 1,
    }
    return Trainer(
        make_agent(folder, agent),
        ConversationEnvironment(SCENARIOS, max_turns=4),
        reward or LettersE(),
        TrainingConfig(**{**defaults, **settings}),
        logger=logger,
        demonstrations=demonstrations,
        eval_scenarios=eval_scenarios,
        eval_environment=eval_environment,
    )


def train(
    trainer: Trainer, callbacks: Sequence[TrainingCallback] = (), resume_from: Path | None = None
) -> Weights:
    """Train to the end; what was trained."""

    async def run() -> None:
        try:
            await trainer.train(list(callbacks), resume_from=resume_from)
        finally:
            await trainer.close()

    asyncio.run(run())
    return {name: value.detach().clone() for name, value in trainer.policy.trainable.items()}


class KillDuringRollout(TrainingCallback):
    """As the second conversation ends while `step` is the present one."""

    def __init__(self, step: int) -> None:
        self._step, self._ended = step, 0

    def on_episode(self, trainer: Trainer, trajectory: Any) -> None:
        self._ended += trainer.step >= self._step
        if self._ended == 2:
            _kill_this_process()


class KillDuringUpdate(TrainingCallback):
    """While gradients are computed."""

    def __init__(self, step: int) -> None:
        self._step = step

    async def on_train_start(self, trainer: Trainer) -> None:
        def hook(gradient: torch.Tensor) -> None:
            if trainer.step >= self._step:
                _kill_this_process()

        next(iter(trainer.policy.trainable.values())).register_hook(hook)


class KillAtFile(TrainingCallback):
    """When a file event of that name happens with at least `step` steps done: as the checkpoint
    opens its state.json, is about to get its name, or while an old one is removed.
    """

    def __init__(self, step: int, event: str, name: str) -> None:
        self._step, self._event, self._name = step, event, name

    async def on_train_start(self, trainer: Trainer) -> None:
        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if (
                event == self._event
                and trainer.step >= self._step
                and self._name in str(arguments[0])
            ):
                _kill_this_process()

        sys.addaudithook(hook)


class KillAfterStep(TrainingCallback):
    """Between two steps, the checkpoint of the first written."""

    runs_last = True

    def __init__(self, step: int) -> None:
        self._step = step

    async def on_step_end(self, trainer: Trainer, metrics: Any) -> None:
        if trainer.step >= self._step:
            _kill_this_process()


KILLS: dict[str, Callable[[int], TrainingCallback]] = {
    "rollout": KillDuringRollout,
    "update": KillDuringUpdate,
    "writing": lambda step: KillAtFile(step, "open", "state.json"),
    "naming": lambda step: KillAtFile(step, "os.rename", ".unfinished-"),
    "removing": lambda step: KillAtFile(step, "os.remove", "weights.safetensors"),
    "edge": KillAfterStep,
}

# A named point of a step, or seconds after the process began.
Moment = tuple[str, int] | float


def run_in_process(folder: Path, work: Path, settings: dict[str, Any], kill: Moment | None) -> int:
    """Train in a process of its own, resuming what is in `work`; its exit code, -9 if killed.

    A run that comes to its end leaves its weights, see `finished_weights`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "stateset_agents.inference.transformers_engine"])
    began = context.Event()
    point = kill if isinstance(kill, tuple) else None
    process = context.Process(target=_child, args=(folder, work, settings, point, began))
    process.start()
    assert began.wait(timeout=120)
    if isinstance(kill, float):
        process.join(timeout=kill)
        process.kill()
    process.join(timeout=120)
    assert process.exitcode is not None
    return process.exitcode


def finished_weights(work: Path) -> Weights:
    return load_file(work / "weights.safetensors")


def _child(
    folder: Path, work: Path, settings: dict[str, Any], kill: tuple[str, int] | None, began: Event
) -> None:
    began.set()
    checkpoints = work / "checkpoints"
    callbacks: list[TrainingCallback] = [CheckpointCallback(checkpoints, final=False)]
    if kill is not None:
        callbacks.append(KILLS[kill[0]](kill[1]))
    resume = checkpoints if any(checkpoints.glob("step_*")) else None
    weights = train(make_trainer(folder, **settings), callbacks, resume)
    save_file(weights, work / "weights.safetensors")


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
