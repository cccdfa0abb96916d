"""A progress bar of training: conversations played, the reward so far, its parts, time to go."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from stateset_agents.training.callbacks import TrainingCallback

if TYPE_CHECKING:
    from stateset_agents.core.trajectory import MultiTurnTrajectory
    from stateset_agents.training.trainer import Trainer


class ProgressBar(TrainingCallback):
    """Moves with every conversation; a step's rewards appear when it is done.

    Where the console is not a terminal, a line is printed after every step instead.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("policy: step {task.fields[step]}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    async def on_train_start(self, trainer: Trainer) -> None:
        """Draw the bar, at the step that a resumed run goes on from."""
        per_step = _conversations_per_step(trainer)
        self._task = self._progress.add_task(
            "train",
            total=trainer.total_steps * per_step,
            completed=trainer.step * per_step,
            step=f"{trainer.step}/{trainer.total_steps}",
            numbers="",
        )

    async def on_warm_start_step(self, trainer: Trainer, step: int, loss: float) -> None:
        """Show how well the demonstrations are imitated."""
        numbers = f"imitating {step}/{trainer.config.warm_start_steps}  loss {loss:.3f}"
        if not self._console.is_terminal:
            self._console.print(f"policy: {numbers}", highlight=False)
        if self._task is not None:
            self._progress.update(self._task, numbers=numbers)

    def on_episode(self, trainer: Trainer, trajectory: MultiTurnTrajectory) -> None:
        """One conversation further."""
        if self._task is not None:
            self._progress.advance(self._task)

    async def on_step_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Show the step's rewards."""
        parts = "  ".join(
            f"{name.removeprefix('reward/parts/')} {value:.2f}"
            for name, value in metrics.items()
            if name.startswith("reward/parts/")
        )
        numbers = f"reward {metrics['reward/mean']:.3f}  {parts}"
        step = f"{trainer.step}/{trainer.total_steps}"
        if not self._console.is_terminal:
            self._console.print(
                f"policy: step {step}  {numbers}  {metrics['seconds/step']:.1f} s",
                highlight=False,
                soft_wrap=True,
            )
        if self._task is not None:
            # groups that were replaced have moved the bar without bringing the end nearer
            done = trainer.step * _conversations_per_step(trainer)
            self._progress.update(self._task, completed=done, step=step, numbers=numbers)


def _conversations_per_step(trainer: Trainer) -> int:
    return trainer.config.groups_per_step * trainer.config.num_generations
