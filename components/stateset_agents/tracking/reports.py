"""Reports of a run to Weights & Biases, MLflow and TensorBoard.

Owns how each is opened, told the settings and closed, whatever way the run ends. It does not know
what the numbers mean. wandb's and TensorBoard's packages are imported when they are asked for.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateset_agents.exceptions import ConfigurationError, RegistryError
from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.loggers import CompositeLogger, MetricLogger

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from wandb import Run

DEFAULT_PROJECT = "stateset-agents"


@dataclass(frozen=True, slots=True)
class ReportPlan:
    """What a run's reports are told at the start.

    Attributes:
        names: of `wandb`, `mlflow`, `tensorboard`.
        folder: TensorBoard's runs and wandb's files are below it.
        run_name: None lets each choose.
        project: of Weights & Biases; None = WANDB_PROJECT, or `stateset-agents`.
        params: the settings, nested by section.
    """

    names: Sequence[str]
    folder: Path
    run_name: str | None = None
    project: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


class WandbLogger:
    """Metrics to one run of Weights & Biases; a step's numbers are one row there."""

    def __init__(self, run: Run) -> None:
        """`run` is what `wandb.init` gave."""
        self._run = run

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the numbers, or write them down where wandb is offline."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Wait until everything is sent or on disk."""
        self._run.finish()


class TensorboardLogger:
    """Metrics to TensorBoard's event files, `tensorboard --logdir <folder>` shows them."""

    def __init__(self, writer: SummaryWriter) -> None:
        """`writer` is a `torch.utils.tensorboard.SummaryWriter`."""
        self._writer = writer

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a scalar each; they are on disk when this returns."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


# The package that each report needs, and the extra that installs it.
_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "tensorboard": "tensorboard"}


def check_installed(names: Sequence[str]) -> None:
    """Demand the packages before anything has been played.

    Raises:
        ConfigurationError: one is missing, all of them in one message.
    """
    problems = [
        f'report_to="{name}" needs the package {_PACKAGES[name]}, which is not installed: pip '
        f'install "stateset-agents[{name}]", or leave {name} out of report_to'
        for name in names
        if importlib.util.find_spec(_PACKAGES[name]) is None
    ]
    if problems:
        raise ConfigurationError(problems)


@contextlib.contextmanager
def open_reports(plan: ReportPlan) -> Iterator[MetricLogger]:
    """All reports of a run as one logger, for the length of a `with` block.

    They are closed when it ends; one that raises is marked as failed where the report knows that.

    Raises:
        ConfigurationError: a package that is not installed.
        RegistryError: a report that cannot be opened.
    """
    check_installed(plan.names)
    openers: dict[str, Callable[[ReportPlan], contextlib.AbstractContextManager[MetricLogger]]] = {
        "wandb": _wandb,
        "mlflow": _mlflow,
        "tensorboard": _tensorboard,
    }
    with contextlib.ExitStack() as stack:
        yield CompositeLogger([stack.enter_context(openers[name](plan)) for name in plan.names])


@contextlib.contextmanager
def _wandb(plan: ReportPlan) -> Iterator[MetricLogger]:
    import wandb

    plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(
            project=plan.project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
            name=plan.run_name,
            dir=str(plan.folder),
            config=dict(plan.params),
            reinit="create_new",
        )
    except (wandb.Error, OSError) as error:
        raise RegistryError(
            f"Weights & Biases cannot start a run: {error}; log in (wandb login, or WANDB_API_KEY),"
            ' set WANDB_MODE=offline to keep the run on this machine, or leave "wandb" out of '
            "report_to"
        ) from error
    try:
        yield WandbLogger(run)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


@contextlib.contextmanager
def _mlflow(plan: ReportPlan) -> Iterator[MetricLogger]:
    from stateset_agents.tracking.mlflow_run import start_run

    name = plan.run_name or DEFAULT_PROJECT
    tracking = TrackingConfig(experiment=DEFAULT_PROJECT)
    with start_run(tracking, name, params=plan.params) as run:
        logger = run.metric_logger()
        try:
            yield logger
        finally:
            logger.close()


@contextlib.contextmanager
def _tensorboard(plan: ReportPlan) -> Iterator[MetricLogger]:
    from torch.utils.tensorboard import SummaryWriter

    from stateset_agents.tracking.mlflow_run import flatten

    name = plan.run_name or datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    writer = SummaryWriter(str(plan.folder / name))
    settings = flatten(plan.params)
    table = [f"|{key}|{value}|" for key, value in settings.items()]
    writer.add_text("settings", "\n".join(["|setting|value|", "|---|---|", *table]))
    logger = TensorboardLogger(writer)
    try:
        yield logger
    finally:
        logger.close()
