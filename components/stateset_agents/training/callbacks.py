"""Callbacks: what happens between steps and is not training.

Owns their protocol and order, and the two that the guide names. An exception in a callback ends
training: nothing is swallowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateset_agents.exceptions import ConfigurationError, TrainingError

if TYPE_CHECKING:
    from stateset_agents.core.trajectory import MultiTurnTrajectory
    from stateset_agents.training.trainer import Trainer


class TrainingCallback:
    """Base of all callbacks: override what you need.

    They are called in the order in which they were given; those with `runs_last` after all others,
    because a checkpoint must hold what the others have counted.
    """

    runs_last = False

    @property
    def name(self) -> str:
        """Under which its state is kept in a checkpoint."""
        return type(self).__name__

    async def on_train_start(self, trainer: Trainer) -> None:
        """Before the first step, after a checkpoint was loaded."""

    async def on_warm_start_step(self, trainer: Trainer, step: int, loss: float) -> None:
        """After imitation step `step` (from 1); `loss` is the mean negative log-likelihood in nats
        a token before it.
        """

    def on_episode(self, trainer: Trainer, trajectory: MultiTurnTrajectory) -> None:
        """As each conversation ends, before it has a reward; with `off_policy_steps` it may be the
        next step's.
        """

    async def on_step_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """After a step. `trainer.stop(reason)` ends training after this round of callbacks."""

    async def on_train_end(self, trainer: Trainer) -> None:
        """After the last step; not called when training failed."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, JSON-serialisable."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""


class EarlyStoppingCallback(TrainingCallback):
    """Stop when `metric` has not risen by more than `min_delta` for `patience` steps.

    A metric of the held-out scenarios (`eval/reward/mean`) is there at evaluations only, and
    `patience` counts these. Give two of them different `name`s.

    Raises:
        ConfigurationError: `patience` below 1, or `min_delta` below 0.
    """

    def __init__(
        self, patience: int = 10, metric: str = "reward/mean", min_delta: float = 0.0
    ) -> None:
        if patience < 1 or min_delta < 0:
            raise ConfigurationError(
                f"EarlyStoppingCallback(patience={patience}, min_delta={min_delta}): patience is "
                "at least 1 step, min_delta at least 0"
            )
        self.patience = patience
        self.metric = metric
        self.min_delta = min_delta
        self.best: float | None = None
        self.steps_without_gain = 0

    async def on_train_start(self, trainer: Trainer) -> None:
        """See that an evaluation's metric will come.

        Raises:
            ConfigurationError: it will not.
        """
        _check_evaluated(self.name, self.metric, trainer)

    async def on_step_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Compare with the best so far.

        Raises:
            TrainingError: there is no such metric.
        """
        value = _watched(self.name, self.metric, metrics)
        if value is None:
            return
        if self.best is None or value > self.best + self.min_delta:
            self.best, self.steps_without_gain = value, 0
            return
        self.steps_without_gain += 1
        if self.steps_without_gain >= self.patience:
            what = "evaluations" if _is_evaluated(self.metric) else "steps"
            trainer.stop(
                f"{self.metric} has not risen above {self.best:.4g} for {self.patience} {what}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Best value and the count of steps since."""
        return {"best": self.best, "steps_without_gain": self.steps_without_gain}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from there."""
        self.best, self.steps_without_gain = state["best"], state["steps_without_gain"]


class CheckpointCallback(TrainingCallback):
    """Save a checkpoint every `save_steps` steps and at the end, and what comes out of the run.

        <save_dir>/step_<n>   what a run needs to go on, the newest ones
        <save_dir>/final      the policy at the end, which can be evaluated and served
        <save_dir>/best       the policy where `best_metric` was highest

    Args:
        save_dir: the folder.
        save_steps: steps between checkpoints. None: as the training config says.
        keep: checkpoints that are kept. None: as the training config says.
        best_metric: such as `eval/reward/mean`, which is there at evaluations, or `reward/mean`.
            None: no `best`.
        final: False leaves the policy to somebody else.

    Raises:
        ConfigurationError: `save_steps` below 0, or `keep` below 1.
    """

    runs_last = True

    def __init__(
        self,
        save_dir: Path | str,
        save_steps: int | None = None,
        keep: int | None = None,
        best_metric: str | None = None,
        *,
        final: bool = True,
    ) -> None:
        if (save_steps is not None and save_steps < 0) or (keep is not None and keep < 1):
            raise ConfigurationError(
                f"CheckpointCallback(save_steps={save_steps}, keep={keep}): save_steps is at least "
                "0 (only at the end), keep at least 1"
            )
        self.save_dir = Path(save_dir)
        self.save_steps = save_steps
        self.keep = keep
        self.best_metric = best_metric
        self.best: float | None = None
        self.final = final

    async def on_train_start(self, trainer: Trainer) -> None:
        """See that the metric of an evaluation will come.

        Raises:
            ConfigurationError: it will not.
        """
        if self.best_metric is not None:
            _check_evaluated(self.name, self.best_metric, trainer)

    async def on_step_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Save when it is time, or when training is about to end.

        Raises:
            CheckpointError: it could not be written; the one before is whole.
            TrainingError: `best_metric` is not measured.
        """
        self._keep_best(trainer, metrics)
        every = trainer.config.save_steps if self.save_steps is None else self.save_steps
        if trainer.is_last_step or (every and trainer.step % every == 0):
            trainer.save_checkpoint(self.save_dir, keep=self.keep)

    async def on_train_end(self, trainer: Trainer) -> None:
        """Leave the policy in `final`.

        Raises:
            CheckpointError: it could not be written.
        """
        if self.final:
            from stateset_agents.training.final_policy import save_final

            save_final(trainer, self.save_dir)

    def state_dict(self) -> dict[str, Any]:
        """The best value."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from it."""
        self.best = state.get("best")

    def _keep_best(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        if self.best_metric is None:
            return
        value = _watched(self.name, self.best_metric, metrics)
        if value is not None and (self.best is None or value > self.best):
            from stateset_agents.training.final_policy import write_policy, write_whole

            self.best = value
            write_whole(self.save_dir / "best", lambda folder: write_policy(folder, trainer))


def _watched(name: str, metric: str, metrics: Mapping[str, float]) -> float | None:
    """The metric's value; None at a step without the evaluation that it is of."""
    if metric in metrics:
        return metrics[metric]
    if _is_evaluated(metric) and "eval/reward/mean" not in metrics:
        return None
    raise TrainingError(
        f"{name} watches {metric!r}, which is not measured: choose from {sorted(metrics)}"
    )


def _is_evaluated(metric: str) -> bool:
    return metric.startswith("eval/")


def _check_evaluated(name: str, metric: str, trainer: Trainer) -> None:
    if _is_evaluated(metric) and trainer.config.eval_steps == 0:
        raise ConfigurationError(
            f"{name} watches {metric!r}, and eval_steps is 0, so nothing is evaluated: set "
            "eval_steps, or watch another metric, such as reward/mean"
        )


def in_calling_order(callbacks: Sequence[TrainingCallback]) -> list[TrainingCallback]:
    """As given, `runs_last` last.

    Raises:
        ConfigurationError: one is no callback, or two share a name, so a checkpoint could not tell
            their states apart.
    """
    wrong = [
        f"callbacks[{place}] is {one!r:.80}; give an instance of a subclass of TrainingCallback, "
        "such as EarlyStoppingCallback(patience=10)"
        for place, one in enumerate(callbacks)
        if not isinstance(one, TrainingCallback)
    ]
    if wrong:
        raise ConfigurationError(wrong)
    names = [callback.name for callback in callbacks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(
            f"callbacks with the same name: {twice}. A checkpoint keeps each one's state by name: "
            "give them different `name` properties"
        )
    return sorted(callbacks, key=lambda callback: callback.runs_last)
