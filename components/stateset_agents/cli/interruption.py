"""Ctrl-C during training: finish the step, save it, say how to go on.

Owns the signal and what the person is told. A step is not cut in two: a checkpoint between steps is
the only one that a run can be resumed from exactly. A second Ctrl-C does not wait.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from stateset_agents.training.callbacks import TrainingCallback

if TYPE_CHECKING:
    import asyncio

    from stateset_agents.training.trainer import Trainer


def quiet_about_interrupts(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler: that a second Ctrl-C ended its tasks is no news."""
    if not isinstance(context.get("exception"), KeyboardInterrupt):
        loop.default_exception_handler(context)


class InterruptedRunError(Exception):
    """The person stopped the run; `checkpoint` is what was saved, None before the first step."""

    def __init__(self, checkpoint: Path | None, step: int) -> None:
        super().__init__(f"interrupted after step {step}")
        self.checkpoint = checkpoint
        self.step = step


class Interruption(TrainingCallback):
    """Within it SIGINT ends the run after the step that is under way; give it to `train` last."""

    runs_last = True

    def __init__(self, save_dir: Path) -> None:
        self._save_dir = save_dir
        self._is_asked = False
        self._is_under_way = False
        self._started = time.time()
        self._before: Any = None

    def __enter__(self) -> Self:
        # only the main thread gets signals, and may say what they do
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    async def on_warm_start_step(self, trainer: Trainer, step: int, loss: float) -> None:
        """There is nothing to save yet.

        Raises:
            InterruptedRunError: the person asked for the end.
        """
        self._is_under_way = True
        if self._is_asked:
            raise InterruptedRunError(None, 0)

    async def on_train_start(self, trainer: Trainer) -> None:
        """From here on there is a step to finish."""
        self._is_under_way = True

    async def on_step_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Save and end, if that was asked for and the run does not end by itself.

        Raises:
            InterruptedRunError: the person asked for the end.
            CheckpointError: it could not be saved.
        """
        if self._is_asked and not trainer.is_last_step:
            raise InterruptedRunError(trainer.save_checkpoint(self._save_dir), trainer.step)

    def newest_checkpoint(self) -> Path | None:
        """The newest that this run has saved."""
        found = [
            path
            for path in self._save_dir.glob("step_*")
            if path.stat().st_mtime >= self._started - 1
        ]
        return max(found, key=lambda path: path.stat().st_mtime, default=None)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_asked or not self._is_under_way:
            raise KeyboardInterrupt
        self._is_asked = True
        # not by sys.stderr: the signal may have come in the middle of a write to it
        os.write(2, b"\nstopping after this step, which is saved; Ctrl-C again stops at once\n")
