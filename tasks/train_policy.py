"""Step: train the policy on the training scenarios by reinforcement learning.

Reads the sections `agent`, `rewards` and `train` (data/tuned.yaml is laid over them),
data/validated (of it validation.jsonl for `train.eval_steps`), data/base_model and
data/reward_model. Writes data/policy (an adapter or a whole model, the tokenizer, policy.json) and
data/reports/policy (metrics.json, steps.csv, conversations.md). A run that was cut off goes on from
.stateset/checkpoints/train_policy if nothing that decides it has changed.
"""

from __future__ import annotations

import asyncio
import csv
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stateset_agents.data.readers import read_preferences, read_scenarios
from stateset_agents.exceptions import PipelineError
from stateset_agents.run_config import RunConfig
from stateset_agents.tracking.lineage import collect_lineage
from stateset_agents.tracking.loggers import CompositeLogger, JsonlLogger
from stateset_agents.tracking.mlflow_run import RUN_LINK, TrackedRun, read_link, start_run
from stateset_agents.training.callbacks import CheckpointCallback, TrainingCallback
from stateset_agents.training.checkpoint import latest_checkpoint, matches
from stateset_agents.training.conversation_samples import ConversationSamples
from stateset_agents.training.final_policy import write_policy
from stateset_agents.training.from_sections import make_trainer
from stateset_agents.training.progress import ProgressBar
from stateset_agents.training.trainer import Trainer
from tasks import entry, paths
from tasks.folders import in_place
from tasks.tuned import with_tuned

SCENARIOS = paths.VALIDATED / "train.jsonl"
VALIDATION = paths.VALIDATED / "validation.jsonl"
PAIRS = paths.VALIDATED / "preferences_train.jsonl"
STATE = paths.CHECKPOINTS / "train_policy"

_log = logging.getLogger(__name__)


class StepTotals(TrainingCallback):
    """Adds up over every step what the report gives in total: the metric logger sees only one in
    `logging_steps`.
    """

    NAMES = (
        "rollout/failed",
        "reward/nonfinite",
        "rollout/resampled_groups",
        "seconds/rollout",
        "seconds/reward",
        "seconds/update",
        "seconds/step",
    )

    def __init__(self) -> None:
        self.sums = dict.fromkeys(self.NAMES, 0.0)

    async def on_step_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Add one step."""
        for name in self.NAMES:
            self.sums[name] += metrics[name]

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return dict(self.sums)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on adding to them."""
        self.sums |= state


def run(config: RunConfig, callbacks: Sequence[TrainingCallback] = ()) -> None:
    """Train and write data/policy; checkpoints are removed once it is there.

    `callbacks` are called after the step's own.
    """
    config = with_tuned(config)
    check_inputs(config)
    trainer = trainer_of(config)
    checkpoint = _fitting_checkpoint(trainer)
    lineage = {
        "scenarios": SCENARIOS,
        "base_model": paths.BASE_MODEL,
        "reward_model": paths.REWARD_MODEL,
    }
    if _reads_pairs(config):
        lineage["preferences"] = PAIRS
    settings = {name: getattr(config, name).model_dump() for name in ("train", "agent", "rewards")}
    with start_run(
        config.tracking,
        "train_policy",
        collect_lineage({name: path for name, path in lineage.items() if path.exists()}),
        params=settings,
        resume_run_id=read_link(STATE / RUN_LINK) if checkpoint else None,
    ) as tracked:
        tracked.write_link(STATE / RUN_LINK)
        totals = StepTotals()
        samples = _train(trainer, tracked, checkpoint, [totals, *callbacks])
        with in_place(paths.POLICY) as folder:
            _write_policy(folder, trainer, config, tracked.run_id)
        metrics = _write_report(trainer, samples, totals)
        tracked.log_metrics({f"final/{name}": value for name, value in metrics.items()})
        tracked.log_artifact(paths.POLICY_REPORT, "policy_report")
        tracked.write_link(paths.POLICY_REPORT / RUN_LINK)
    shutil.rmtree(STATE)
    _print_summary(metrics)


def check_inputs(config: RunConfig) -> None:
    """Name everything that is missing and the step that makes it.

    Raises:
        PipelineError: something is.
    """
    makers = {SCENARIOS: "validate_scenarios", paths.BASE_MODEL: "fetch_base_model"}
    if _reads_pairs(config):
        makers[PAIRS] = "validate_scenarios"
    if config.train.eval_steps:
        makers[VALIDATION] = "validate_scenarios"
    if config.rewards.weights.learned > 0:
        makers[paths.REWARD_MODEL] = "train_reward_model"
    missing = [f"{path} is missing; run the step {makers[path]}" for path in makers
               if not path.exists()]  # fmt: skip
    if missing:
        raise PipelineError("\n".join(missing))


def _reads_pairs(config: RunConfig) -> bool:
    return config.train.warm_start_steps > 0 or config.train.pairs_from == "preferences"


def trainer_of(config: RunConfig) -> Trainer:
    """The trainer that this step trains with; nothing is loaded yet."""
    return make_trainer(
        base_model=paths.BASE_MODEL,
        scenarios=read_scenarios(SCENARIOS),
        agent=config.agent,
        rewards=config.rewards,
        train=config.train,
        reward_model=paths.REWARD_MODEL,
        pairs=read_preferences(PAIRS) if _reads_pairs(config) else (),
        eval_scenarios=read_scenarios(VALIDATION) if config.train.eval_steps else (),
    )


def _fitting_checkpoint(trainer: Trainer) -> Path | None:
    """The newest checkpoint of exactly this run; those of another are removed."""
    found = latest_checkpoint(STATE)
    if found is not None and matches(found, trainer.fingerprint):
        _log.info("going on from %s", found)
        return found
    if STATE.exists():
        if found is not None:
            _log.info("%s is of a run with other data or settings; starting anew", found)
        shutil.rmtree(STATE)
    return None


def _train(
    trainer: Trainer,
    tracked: TrackedRun,
    checkpoint: Path | None,
    callbacks: Sequence[TrainingCallback],
) -> ConversationSamples:
    steps = JsonlLogger(STATE / "steps.jsonl")
    if checkpoint is not None:
        steps.truncate_after(int(checkpoint.name.rpartition("_")[2]))
    trainer.logger = CompositeLogger([steps, tracked.metric_logger(every=1)])
    samples = ConversationSamples()
    try:
        with ProgressBar(Console(stderr=True)) as bar:
            everyone = [bar, samples, CheckpointCallback(STATE, final=False), *callbacks]
            asyncio.run(_train_and_close(trainer, everyone, checkpoint))
    finally:
        trainer.logger.close()
    return samples


async def _train_and_close(
    trainer: Trainer, callbacks: Sequence[TrainingCallback], checkpoint: Path | None
) -> None:
    try:
        await trainer.train(callbacks, resume_from=checkpoint)
    finally:
        await trainer.close()


def _write_policy(folder: Path, trainer: Trainer, config: RunConfig, run_id: str) -> None:
    described = {
        "base_model": str(paths.BASE_MODEL),
        "base_model_source": config.base_model.source,
        "mlflow_run_id": run_id,
    }
    write_policy(folder, trainer, described)


def _write_report(
    trainer: Trainer, samples: ConversationSamples, totals: StepTotals
) -> dict[str, float]:
    lines = (STATE / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    metrics = _summarise(steps, trainer, totals.sums)
    with in_place(paths.POLICY_REPORT) as folder:
        # a table, because `dvc plots` reads no JSON lines
        with (folder / "steps.csv").open("w", encoding="utf-8", newline="") as file:
            columns = sorted({name for step in steps for name in step} - {"step"})
            table = csv.DictWriter(file, ["step", *columns])
            table.writeheader()
            table.writerows(steps)
        (folder / "conversations.md").write_text(samples.to_markdown(), encoding="utf-8")
        text = json.dumps(metrics, indent=2, sort_keys=True)
        (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    return metrics


def _summarise(
    steps: list[dict[str, Any]], trainer: Trainer, totals: Mapping[str, float]
) -> dict[str, float]:
    """Means over the first and the last tenth of the logged steps (at least three), and totals over
    all.

    The reward here is that of sampled training conversations; what counts is the evaluation's.
    """
    window = min(len(steps), max(3, len(steps) // 10))
    shown = ["reward/mean", *sorted(name for name in steps[-1] if name.startswith("reward/parts/"))]
    metrics: dict[str, float] = {"steps": trainer.step}
    for name in shown:
        metrics[f"first/{name}"] = _mean(steps[:window], name)
        metrics[f"last/{name}"] = _mean(steps[-window:], name)
    for name in (
        "policy/kl_to_reference",
        "policy/entropy",
        "policy/clipped_fraction",
        "policy/sampling_difference_mean",
        "reward/within_group_std",
        "rollout/answer_tokens_mean",
        "rollout/truncated_fraction",
    ):
        metrics[f"last/{name}"] = _mean(steps[-window:], name)
    metrics["failed_rollouts"] = totals["rollout/failed"]
    metrics["nonfinite_rewards"] = totals["reward/nonfinite"]
    metrics["resampled_groups"] = totals["rollout/resampled_groups"]
    assert trainer.best is not None  # a run has at least one step
    metrics["best/reward/mean"] = trainer.best[0]
    metrics["tokens_per_second/rollout"] = _mean(steps, "tokens_per_second/rollout")
    metrics["tokens_per_second/update"] = _mean(steps, "tokens_per_second/update")
    for stage in ("rollout", "reward", "update", "step"):
        metrics[f"seconds/{stage}"] = totals[f"seconds/{stage}"]
    return metrics


def _mean(steps: list[dict[str, Any]], name: str) -> float:
    """Over the steps that measured it; 0 when none did (no row taught anything)."""
    values = [step[name] for step in steps if step.get(name) is not None]
    return sum(values) / len(values) if values else 0.0


def _print_summary(metrics: Mapping[str, float]) -> None:
    table = Table(title=f"Policy trained in {metrics['steps']:.0f} steps", title_justify="left")
    for column in ("on sampled training conversations", "first steps", "last steps"):
        table.add_column(column, justify="left" if column.startswith("on") else "right")
    for name in sorted(name for name in metrics if name.startswith("first/")):
        measure = name.removeprefix("first/")
        table.add_row(
            measure.removeprefix("reward/parts/"),
            f"{metrics[name]:.3f}",
            f"{metrics[f'last/{measure}']:.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    entry.main(run)
