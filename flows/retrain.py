"""The flow `retrain`: every step of the line in order, each one a Prefect task. A search for
parameters (`tune`), where params.yaml asks for one, is a flow below it.

    python -m flows.retrain [--until STEP] [--force]

A task brings one DVC stage up to date, so the flow and `dvc repro` are the same graph, the same
cache and the same code, and each finds the other's work done. Prefect's own result cache stays
off: it would call a step done whose files are gone.
"""

from __future__ import annotations

import argparse
import sys
from typing import get_args

from flows import environment

if __name__ == "__main__":
    environment.prepare_terminal()

from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.runtime import flow_run

from flows import repository, result
from flows.repository import StepFailedError
from flows.step_runs import as_task, say
from flows.steps import StepName, steps_until
from flows.tune import asks_for_trials, tune
from stateset_agents.exceptions import StateSetError
from tasks import entry


@flow(name="retrain", persist_result=False, log_prints=False)
def retrain(until: StepName = "promote_model", force: bool = False) -> None:
    """Bring the line up to date.

    Args:
        until: the last step; what comes after it is left as it is.
        force: run the steps even where they are up to date.

    Raises:
        PipelineError: a step failed, or the checkout is in use by another process.
    """
    root = environment.find_repository()
    environment.prepare_steps()
    steps = steps_until(until)
    with repository.hold_checkout(root):
        outcomes = []
        for number, step in enumerate(steps, start=1):
            say(f"[{number}/{len(steps)}] {step.name}")
            if step.name == "tune" and asks_for_trials(root):
                outcome = tune(force=force)
            else:
                outcome = as_task(step)(root, step.name, force)
            done = f"done in {outcome.seconds:.0f} s" if outcome.ran else "up to date"
            say(f"[{number}/{len(steps)}] {step.name}: {done}")
            outcomes.append(outcome)
        page = f"{environment.prefect_pages()}/runs/flow-run/{flow_run.id}"
        _report(result.read_result(root, outcomes, page))


def _report(found: result.Result) -> None:
    create_markdown_artifact(result.as_markdown(found), key="retrain-result")
    if found.mlflow_page:
        create_link_artifact(found.mlflow_page, link_text="MLflow run", key="mlflow-run")
    print(result.as_text(found), flush=True)


def main() -> int:
    """Run the flow in this process; the exit code is 0, 1 for an error, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m flows.retrain", description=retrain.__doc__)
    names = get_args(StepName)
    parser.add_argument("--until", choices=names, default=names[-1], help="the last step to run")
    parser.add_argument("--force", action="store_true", help="run steps that are up to date too")
    arguments = parser.parse_args()
    entry.set_up_logging()
    environment.end_well_when_told()
    try:
        root = environment.find_repository()
        with repository.hold_checkout(root):
            repository.require_idle_dvc(root)
        print("starting Prefect (half a minute the first time)", flush=True)
        retrain(until=arguments.until, force=arguments.force)
    except StepFailedError as error:
        if not error.by_itself:
            entry.print_error(error)
            return 1
        # the step has shown its own message already
        entry.print_error(
            f"step {error.step} failed. Mend what it says and start again: "
            "the steps before it are done and stay done"
        )
        return 1
    except StateSetError as error:
        entry.print_error(error)
        return 1
    except RuntimeError as error:  # Prefect has no class of its own for it
        if "ephemeral Prefect API server" not in str(error):
            raise
        entry.print_error(environment.explain_no_server())
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
