"""A run between two steps: what tells it from other runs, and what it needs to go on.

Owns what a checkpoint holds beside tensors, and the order in which it is put back. It does not know
the loop, nor how a checkpoint lies on the disk (`checkpoint.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from stateset_agents.core.agent import AgentConfig
from stateset_agents.core.environment import Environment
from stateset_agents.training.callbacks import TrainingCallback
from stateset_agents.training.checkpoint import Checkpoint, digest
from stateset_agents.training.config import SETTINGS_WITHOUT_EFFECT_ON_WEIGHTS, TrainingConfig
from stateset_agents.training.critic import value_function_fingerprint
from stateset_agents.training.demonstrations import Demonstration
from stateset_agents.training.optimizer_state import restore_optimizer
from stateset_agents.training.preferences import Preference, preference_fingerprint
from stateset_agents.training.processes import Processes, Weights
from stateset_agents.training.random_states import (
    random_states,
    restore_random_states,
    seed_generators,
    seed_of_process,
)
from stateset_agents.training.rollouts import StepRollout
from stateset_agents.training.step import Learner

if TYPE_CHECKING:
    from stateset_agents.core.value_function import ValueFunction

_RANDOM_STATES = "random states"


@dataclass(frozen=True, slots=True)
class RunState:
    """What of a run changes from step to step, beside its learner and its callbacks.

    Attributes:
        step: batches of conversations done.
        best: the highest `reward/mean` so far and its step.
        stop_reason: why training ended early.
        ahead: the next step's conversations, where they were played before this step's update.
    """

    step: int
    best: tuple[float, int] | None
    stop_reason: str | None
    ahead: StepRollout | None


def run_fingerprint(
    config: TrainingConfig,
    agent: AgentConfig,
    environment: Environment,
    *,
    base_model: str,
    demonstrations: Sequence[Demonstration],
    preferences: Sequence[Preference],
    value_function: ValueFunction | None,
) -> dict[str, str]:
    """Digests of what decides a run, by part; `base_model` is its weights' already."""
    settings = config.model_dump(exclude=set(SETTINGS_WITHOUT_EFFECT_ON_WEIGHTS))
    spoken = agent.model_dump(exclude={"model_name", "device_map"})
    return {
        "training settings": digest(settings),
        "agent settings": digest(spoken),
        "base model": base_model,
        "scenarios": digest([list(environment.scenarios), environment.randomize_scenarios]),
        "demonstrations": digest([asdict(one) for one in demonstrations]),
        **value_function_fingerprint(value_function),
        **preference_fingerprint(preferences),
    }


def answers() -> dict[str, Callable[[], Any]]:
    """What the first process asks of the others while it makes a checkpoint."""
    return {_RANDOM_STATES: random_states}


def checkpoint_of(
    run: RunState,
    learner: Learner,
    *,
    tensors: tuple[Weights, Weights],
    fingerprint: dict[str, str],
    callbacks: Sequence[TrainingCallback],
    processes: Processes,
) -> Checkpoint:
    """All that `restore` puts back; `tensors` are whole, the weights' and the optimizer's."""
    weights, optimizer = tensors
    random, *others = processes.ask(_RANDOM_STATES, random_states)
    state = {
        "random": random,
        "random_of_other_processes": others,
        "callbacks": {callback.name: callback.state_dict() for callback in callbacks},
        "best": run.best,
        "stop_reason": run.stop_reason,
        "ahead": None if run.ahead is None else run.ahead.to_json(),
        "loss_scale": learner.loss_scale and learner.loss_scale.state_dict(),
    }
    return Checkpoint(
        step=run.step, fingerprint=fingerprint, weights=weights, optimizer=optimizer, state=state
    )


def restore(
    saved: Checkpoint,
    learner: Learner,
    *,
    seed: int,
    callbacks: Sequence[TrainingCallback],
    processes: Processes,
) -> RunState:
    """Put learner, callbacks and random generators back to where the checkpoint saw them.

    The generators of a process that the saved run did not have begin with the run's seed, its
    rank and the step.
    """
    learner.load_trainable(saved.weights)
    optimizer = learner.policy.placed(saved.optimizer)
    restore_optimizer(learner.optimizer, list(learner.trainable), optimizer)
    if learner.loss_scale is not None:
        learner.loss_scale.load_state_dict(saved.state["loss_scale"])
    told: Mapping[str, Any] = saved.state["callbacks"]
    for callback in callbacks:
        if callback.name in told:
            callback.load_state_dict(told[callback.name])
    random = [saved.state["random"], *saved.state.get("random_of_other_processes", [])]
    if processes.rank < len(random):
        restore_random_states(random[processes.rank])
    else:
        seed_generators(seed_of_process(seed, processes.rank, saved.step))
    best, ahead = saved.state["best"], saved.state["ahead"]
    return RunState(
        step=saved.step,
        best=None if best is None else (best[0], best[1]),
        stop_reason=saved.state["stop_reason"],
        ahead=None if ahead is None else StepRollout.from_json(ahead),
    )
