"""When a run is looked at, saved and reported: settings that change no weight.

Owns these settings and their checks. It does not know torch, nor who reads the reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stateset_agents.settings import Settings
from stateset_agents.tracking.reports import ReportPlan

ReportName = Literal["none", "wandb", "mlflow", "tensorboard"]


class MonitoringSettings(Settings):
    """A run may be resumed with others than those it began with."""

    eval_steps: int = Field(default=0, ge=0)
    """Optimizer batches between two evaluations on scenarios that are not trained on, and one at
    the end: `eval/...` among the metrics. 0: never. Which scenarios: `Trainer(eval_scenarios=...)`.
    """
    eval_max_scenarios: int = Field(default=16, ge=1)
    """The first so many of them are played in each evaluation, a conversation each."""
    save_steps: int = Field(default=100, ge=0)
    """Optimizer batches between checkpoints. 0: only at the end."""
    save_total_limit: int = Field(default=2, ge=1)
    """Checkpoints that are kept."""
    logging_steps: int = Field(default=10, ge=1)
    """Batches between two entries in logger and reports; evaluations and the last batch are always
    entered."""
    report_to: ReportName | list[ReportName] = "none"
    """Who else gets the metrics and the settings: `wandb`, `mlflow`, `tensorboard`, several in a
    list, or `none`. Each needs its extra installed."""
    wandb_project: str | None = None
    """The project in Weights & Biases. None: WANDB_PROJECT, or `stateset-agents`."""
    run_name: str | None = None
    """What the run is called in reports. None: they choose, TensorBoard the time of the start."""
    logging_dir: str = "runs"
    """The folder of TensorBoard's files (each run in one of its own) and of wandb's."""

    @property
    def reports(self) -> list[str]:
        """`report_to` as a list, empty for `none`."""
        named = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to)
        return [name for name in named if name != "none"]

    def report_plan(self, params: Mapping[str, Any]) -> ReportPlan:
        """What the reports of a run are told at its start; `params` are all its settings."""
        return ReportPlan(
            self.reports, Path(self.logging_dir), self.run_name, self.wandb_project, params
        )


# They say when to look and to save, not what is computed.
MONITORING_SETTINGS = frozenset(MonitoringSettings.model_fields)


def problems_of_monitoring(settings: MonitoringSettings) -> Iterator[str]:
    """What of it cannot work together."""
    if isinstance(settings.report_to, list):
        named = settings.report_to
        if "none" in named and len(named) > 1:
            yield f'report_to={named} names "none" beside others: leave it out'
        if len(set(named)) < len(named):
            yield f"report_to={named} names one twice: name each once"
    if settings.wandb_project is not None and "wandb" not in settings.reports:
        yield (
            f"wandb_project={settings.wandb_project!r} has no effect with report_to="
            f'{settings.report_to!r}: set report_to="wandb" or leave wandb_project out'
        )
