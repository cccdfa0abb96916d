"""A step of the line as a Prefect task: it brings one DVC stage up to date."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run

from flows import (
    environment,  # noqa: F401 - before Prefect
    repository,
)
from flows.repository import StepFailedError, StepOutcome
from flows.steps import Step, StepName

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun
    from prefect.tasks import Task


def _is_worth_a_retry(_task: Task[..., StepOutcome], _run: TaskRun, state: State) -> bool:
    # Asked only of steps that are not over their retries. What a step found out by itself (wrong
    # data, a missed floor), or what keeps it from starting, is the same a second time.
    error = state.result(raise_on_failure=False)
    return isinstance(error, StepFailedError) and not error.by_itself


@task(cache_policy=NO_CACHE, retry_condition_fn=_is_worth_a_retry, persist_result=False)
def run_step(root: Path, step: StepName, force: bool) -> StepOutcome:
    """Bring one stage up to date."""
    if task_run.run_count > 1:
        say(f"{step}: again, try {task_run.run_count}")
    return repository.reproduce(root, step, force=force)


def as_task(step: Step) -> Task[..., StepOutcome]:
    """The task of one step, with its retries and time limit."""
    return run_step.with_options(
        name=step.name,
        task_run_name=step.name,
        retries=step.retries,
        retry_delay_seconds=step.retry_delay_seconds,
        timeout_seconds=step.time_limit_seconds,
    )


def say(line: str) -> None:
    """To the terminal and to Prefect's log."""
    print(line, flush=True)
    get_run_logger().info(line)
