"""Step: learn from the preference pairs which answer people like better.

Reads the section `reward_model`, data/validated/preferences_{train,heldout}.jsonl and
data/base_model. Writes data/reward_model and data/reports/reward_model; neither is touched when
the held-out accuracy is under its floor.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from stateset_agents.data.readers import read_preferences
from stateset_agents.exceptions import PipelineError, TrainingError
from stateset_agents.run_config import RunConfig
from stateset_agents.tracking.lineage import collect_lineage
from stateset_agents.tracking.mlflow_run import RUN_LINK, start_run
from stateset_agents.training.reward_model import TrainedRewardModel, train_reward_model
from stateset_agents.training.reward_model_config import RewardModelConfig
from tasks import entry, paths
from tasks.folders import in_place

TRAIN = paths.VALIDATED / "preferences_train.jsonl"
HELDOUT = paths.VALIDATED / "preferences_heldout.jsonl"


def run(config: RunConfig) -> None:
    """Train, measure, and put model and report in place, or fail and put nothing."""
    _check_inputs()
    pairs, heldout = read_preferences(TRAIN), read_preferences(HELDOUT)
    lineage = {"base_model": paths.BASE_MODEL, "preferences": TRAIN, "preferences_heldout": HELDOUT}
    settings = {"reward_model": config.reward_model.model_dump()}
    with start_run(
        config.tracking, "train_reward_model", collect_lineage(lineage), params=settings
    ) as tracked:
        with _progress() as advance:
            trained = train_reward_model(
                pairs, heldout, paths.BASE_MODEL, config.reward_model, advance
            )
        logger = tracked.metric_logger(every=20)
        for point in trained.curve:
            step = int(point["step"])
            logger.log(step, {"train.loss": point["loss"], "train.accuracy": point["accuracy"]})
        logger.close()
        tracked.log_metrics(trained.metrics)
        _check_floor(trained.metrics, config.reward_model)
        with in_place(paths.REWARD_MODEL) as folder:
            trained.save(folder)
        _write_report(trained)
        tracked.log_artifact(paths.REWARD_MODEL_REPORT, "reward_model_report")
        tracked.write_link(paths.REWARD_MODEL_REPORT / RUN_LINK)
    _print_summary(trained)


def _check_inputs() -> None:
    """Name everything that is missing and the step that makes it."""
    makers = {
        TRAIN: "validate_scenarios",
        HELDOUT: "validate_scenarios",
        paths.BASE_MODEL: "fetch_base_model",
    }
    missing = [f"{path} is missing; run the step {step}" for path, step in makers.items()
               if not path.exists()]  # fmt: skip
    if missing:
        raise PipelineError("\n".join(missing))


def _check_floor(metrics: Mapping[str, float], config: RewardModelConfig) -> None:
    accuracy, floor = metrics["heldout_accuracy"], config.min_heldout_accuracy
    if accuracy < floor:
        raise TrainingError(
            f"the reward model ranks {accuracy:.3f} of {metrics['heldout_pairs']:.0f} held-out "
            f"pairs rightly, and reward_model.min_heldout_accuracy is {floor:g} (by length alone: "
            f"{metrics['length_baseline_accuracy']:.3f}; on training pairs: "
            f"{metrics['train_accuracy']:.3f}). Nothing was written. Look at the pairs, add to "
            "them, or train more layers or epochs"
        )


@contextlib.contextmanager
def _progress() -> Iterator[Any]:
    """A bar for each stage of the training, with loss and accuracy so far."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    bars: dict[str, Any] = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def advance(stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(f"reward model: {stage}", total=total, numbers="")
            shown = "  ".join(f"{name} {value:.3f}" for name, value in numbers.items())
            progress.update(bars[stage], completed=done, numbers=shown)

        yield advance


def _write_report(trained: TrainedRewardModel) -> None:
    """Every file beside its place, then all of them moved; metrics.json comes last."""
    folder = paths.REWARD_MODEL_REPORT
    folder.mkdir(parents=True, exist_ok=True)
    bins = [asdict(one) for one in trained.calibration]
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as temporary:
        unfinished = Path(temporary)
        _draw(trained, unfinished / "calibration.png")
        for name, value in (
            ("calibration.json", bins),
            ("training_curve.json", trained.curve),
            ("metrics.json", trained.metrics),
        ):
            (unfinished / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        for name in ("calibration.png", "calibration.json", "training_curve.json", "metrics.json"):
            os.replace(unfinished / name, folder / name)


def _draw(trained: TrainedRewardModel, path: Path) -> None:
    """The reliability curve on held-out pairs, and the training curve beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0.5, 1], [0.5, 1], "--", color="grey", label="as sure as right")
    left.plot(
        [one.confidence for one in trained.calibration],
        [one.accuracy for one in trained.calibration],
        "o-",
        label="held-out pairs",
    )
    left.set(xlabel="confidence", ylabel="share ranked rightly", xlim=(0.48, 1.02))
    error = trained.metrics["calibration_error"]
    left.set_title(f"Calibration (mean error {error:.3f})")
    left.legend()
    steps = [point["step"] for point in trained.curve]
    for name in ("loss", "accuracy"):
        right.plot(steps, _smoothed([point[name] for point in trained.curve]), label=name)
    right.set(xlabel="step", title="Training (running mean of 5 steps)")
    right.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})  # the same bytes every time


def _smoothed(values: Sequence[float]) -> list[float]:
    return [
        sum(values[max(0, i - 4) : i + 1]) / len(values[max(0, i - 4) : i + 1])
        for i in range(len(values))
    ]


def _print_summary(trained: TrainedRewardModel) -> None:
    metrics = trained.metrics
    Console().print(
        f"reward model: {metrics['heldout_accuracy']:.3f} of {metrics['heldout_pairs']:.0f} "
        f"held-out pairs ranked rightly (by length alone "
        f"{metrics['length_baseline_accuracy']:.3f}), calibration error "
        f"{metrics['calibration_error']:.3f}"
    )


if __name__ == "__main__":
    entry.main(run)
