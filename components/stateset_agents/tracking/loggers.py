"""Where metrics go while something runs: the protocol, and four that follow it.

Owns how a step's numbers are written down. It does not know what the numbers mean, and a logger
never decides anything.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO, runtime_checkable

from stateset_agents.exceptions import RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient


@runtime_checkable
class MetricLogger(Protocol):
    """Anything that takes a step's numbers."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write down one step's numbers; NaN and infinity are kept, not dropped."""
        ...

    def close(self) -> None:
        """Write what is still held back; closing twice is fine."""
        ...


class ConsoleLogger:
    """One line a step: `step 12  reward 0.412  kl 0.003`."""

    def __init__(self, names: Sequence[str] | None = None, stream: TextIO | None = None) -> None:
        """`names` are the metrics to show and their order; None = all of them by name."""
        self._names = names
        self._stream = stream

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print the line."""
        names = sorted(metrics) if self._names is None else self._names
        shown = "  ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)
        # looked up at each call: a test or a progress bar may have replaced sys.stdout
        print(f"step {step}  {shown}", file=self._stream or sys.stdout, flush=True)

    def close(self) -> None:
        """Nothing is held back."""


class JsonlLogger:
    """One JSON object a step, `{"step": 12, "reward": 0.412}`; NaN and infinity become null, which
    is what JSON has for them.

    A run that is resumed from a checkpoint continues the file: lines of steps that are done again
    are dropped by `truncate_after`.
    """

    def __init__(self, path: Path) -> None:
        """`path` is appended to; its folder is made."""
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the line; it is on disk when this returns, as far as the process can tell."""
        row: dict[str, float | int | None] = {"step": step}
        row |= {name: float(v) if math.isfinite(v) else None for name, v in metrics.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def truncate_after(self, step: int) -> None:
        """Drop the lines of later steps than `step` and a line that a killed run left half
        written.
        """
        if not self._path.is_file():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # half written: the step it belongs to is done again
            if row["step"] <= step:
                kept.append(line + "\n")
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(self._path)

    def close(self) -> None:
        """Nothing is held back."""


class MlflowLogger:
    """Metrics to one MLflow run, in batches.

    The run is named by its id, not taken from MLflow's active run: that one belongs to a thread,
    and trainers log from whichever thread they run on. Batches of `every` steps, because a call
    to a server costs some milliseconds and a step may take less.
    """

    # MLflow's own limit of metrics in one call
    _MAX_BATCH = 1000

    def __init__(self, client: MlflowClient, run_id: str, *, every: int = 1) -> None:
        """`every`: steps between two calls to MLflow."""
        self._client = client
        self._run_id = run_id
        self._every = max(1, every)
        self._waiting: list[tuple[str, float, int, int]] = []
        self._steps = 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hold the numbers back until `every` steps are there, then send them.

        Raises:
            RegistryError: MLflow does not take them.
        """
        now = int(time.time() * 1000)
        self._waiting += [(name, float(value), now, step) for name, value in metrics.items()]
        self._steps += 1
        if self._steps >= self._every:
            self.close()

    def close(self) -> None:
        """Send what is held back.

        Raises:
            RegistryError: MLflow does not take it.
        """
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        waiting, self._waiting, self._steps = self._waiting, [], 0
        for start in range(0, len(waiting), self._MAX_BATCH):
            batch = [Metric(*one) for one in waiting[start : start + self._MAX_BATCH]]
            try:
                self._client.log_batch(self._run_id, metrics=batch)
            except MlflowException as error:
                raise RegistryError(
                    f"MLflow does not take the metrics of run {self._run_id}: {error}; start the "
                    "step again when MLflow answers, it continues from its last checkpoint"
                ) from error


class CompositeLogger:
    """Several loggers as one, in the order given."""

    def __init__(self, loggers: Sequence[MetricLogger]) -> None:
        self._loggers = tuple(loggers)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand the numbers to each."""
        for logger in self._loggers:
            logger.log(step, metrics)

    def close(self) -> None:
        """Close each, the last one too when an earlier one raises."""
        errors: list[Exception] = []
        for logger in self._loggers:
            try:
                logger.close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
