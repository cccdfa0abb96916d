"""What each algorithm of the table makes of one warm start, on the line's model, rewards and data.

    python -m benchmarks.learning warm_start      once: a model folder; base and it are evaluated
    python -m benchmarks.learning train grpo ppo  any of the table, one after the other
    python -m benchmarks.learning table           what has been measured so far, as Markdown

It reads `params.yaml` and what the line's steps wrote to `data/` (base_model, validated,
reward_model). Every algorithm gets the same few conversations of training and the line's settings
but for those in `settings_of`, and is evaluated on held-out intents with the same seeds. A result
is written as soon as its algorithm is done, so an experiment that is cut off keeps what it has.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import numpy as np

from benchmarks.machine import describe_machine, describe_revision
from benchmarks.results import RESULTS
from stateset_agents.data.readers import read_preferences, read_scenarios
from stateset_agents.evaluation.compare import Interval, cluster_bootstrap
from stateset_agents.evaluation.config import EvaluationConfig
from stateset_agents.evaluation.policies import load_policy_model
from stateset_agents.evaluation.results import PolicyResult
from stateset_agents.evaluation.run import Candidate, play, select_scenarios
from stateset_agents.inference.loading import load_tokenizer
from stateset_agents.inference.transformers_engine import TransformersEngine
from stateset_agents.rewards.build import build_reward
from stateset_agents.run_config import RunConfig, load
from stateset_agents.tracking.merging import merge_adapter
from stateset_agents.training.algorithm_settings import unread_settings
from stateset_agents.training.algorithms import ALGORITHMS, Algorithm
from stateset_agents.training.callbacks import TrainingCallback
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.final_policy import write_policy
from stateset_agents.training.from_sections import make_trainer
from stateset_agents.training.trainer import Trainer
from tasks import paths

WORK = Path(".stateset/learning")
WARM_START = WORK / "warm_start"
FOLDER = RESULTS / "learning"
# Two and a half minutes of one core an algorithm: four steps of two groups of eight.
EPISODES, GROUPS_PER_STEP = 8, 2
SCENARIOS_PER_INTENT = 2
# What the line says of a row's own matters would make two rows one.
_OF_THE_ROW = {"algorithm", "loss_aggregation", "warm_start_steps"}
# A direction from half the rows and iterations of the default, which is what the time allows.
_SHORTER: dict[str, dict[str, Any]] = {
    "trpo": {"bf16": False, "fisher_rows": 4, "fisher_iterations": 5}
}
_SHOWN_CONVERSATIONS = 6


def settings_of(line: TrainingConfig, algorithm: Algorithm) -> TrainingConfig:
    """The line's settings for a short run of `algorithm`; its own aggregation and baseline."""
    row = ALGORITHMS[algorithm]
    left_out = {*_OF_THE_ROW, *unread_settings(row)}
    if not row.can_credit_turns:
        left_out.add("credit")
    kept = line.model_dump(exclude_unset=True, exclude=left_out)
    return TrainingConfig(
        **{
            **kept,
            "algorithm": algorithm,
            "num_episodes": EPISODES,
            "per_device_train_batch_size": GROUPS_PER_STEP,
            **_SHORTER.get(algorithm, {}),
        }
    )


class Rewards(TrainingCallback):
    """Keeps each step's mean reward."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    async def on_step_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Add one."""
        kept = ("reward/mean", "policy/kl_to_reference", "policy/kl", "policy/step_taken")
        self.steps.append({name: metrics[name] for name in kept if name in metrics})


def warm_start(config: RunConfig) -> None:
    """Imitate as the line does and store the model; evaluate it and the base."""
    measure(config, "base", paths.BASE_MODEL, {})
    imitation = config.train.model_copy(update={"num_episodes": GROUPS_PER_STEP}, deep=True)
    imitation.per_device_train_batch_size = GROUPS_PER_STEP
    found = _train(config, imitation, paths.BASE_MODEL, WORK / "imitation", imitate=True)
    shutil.rmtree(WARM_START, ignore_errors=True)
    merge_adapter(WORK / "imitation", paths.BASE_MODEL, WARM_START)
    measure(config, "warm_start", WARM_START, found)


def train(config: RunConfig, algorithm: Algorithm) -> None:
    """Train from the warm start, and evaluate what came of it."""
    settings = settings_of(config.train, algorithm)
    policy = WORK / algorithm
    found = _train(config, settings, WARM_START, policy)
    measure(config, algorithm, policy, {**found, "settings": settings.model_dump(mode="json")})


class _Imitated(Exception):
    """Ends a run between imitation and the first conversation."""


class _StopAfterImitation(TrainingCallback):
    async def on_train_start(self, trainer: Trainer) -> None:
        raise _Imitated


def _train(
    config: RunConfig, train: TrainingConfig, model: Path, target: Path, *, imitate: bool = False
) -> dict[str, Any]:
    """Write the policy to `target`; seconds, peak memory and the rewards of training."""
    pairs = read_preferences(paths.VALIDATED / "preferences_train.jsonl") if imitate else ()
    trainer = make_trainer(
        base_model=model,
        scenarios=read_scenarios(paths.VALIDATED / "train.jsonl"),
        agent=config.agent,
        rewards=config.rewards,
        train=train,
        reward_model=paths.REWARD_MODEL,
        pairs=pairs,
    )
    rewards = Rewards()
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    started = time.perf_counter()
    asyncio.run(_run(trainer, [rewards, *([_StopAfterImitation()] if imitate else [])], target))
    return {
        "seconds": time.perf_counter() - started,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "conversations": trainer.step * train.groups_per_step * train.num_generations,
        "steps": rewards.steps,
    }


async def _run(trainer: Trainer, callbacks: Sequence[TrainingCallback], target: Path) -> None:
    try:
        await trainer.train(callbacks)
    except _Imitated:
        pass
    finally:
        write_policy(target, trainer)
        await trainer.close()
    gc.collect()


def measure(config: RunConfig, name: str, folder: Path, found: Mapping[str, Any]) -> None:
    """Play the held-out scenarios with the policy in `folder`, and write the result."""
    evaluate = config.evaluate.model_copy(update={"scenarios_per_intent": SCENARIOS_PER_INTENT})
    scenarios = select_scenarios(
        [one.model_dump() for one in read_scenarios(paths.VALIDATED / "heldout.jsonl")],
        SCENARIOS_PER_INTENT,
    )
    base = paths.BASE_MODEL if name in ("base", "warm_start") else WARM_START
    model = load_policy_model(folder, base, dtype=config.agent.torch_dtype)
    engine = TransformersEngine(model, load_tokenizer(paths.BASE_MODEL))
    played = asyncio.run(
        play(
            Candidate("challenger", name, engine),
            scenarios,
            build_reward(config.rewards, paths.REWARD_MODEL),
            config.agent,
            evaluate,
        )
    )
    _write(name, {**found, "evaluation_seconds": played.seconds}, played)
    _write_conversations(name, played)


def _write(name: str, found: Mapping[str, Any], played: PolicyResult) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    measured = [
        {"id": one.key[0], "seed": one.seed, "measures": _rounded(one.measures())}
        for one in played.scored
    ]
    document = {
        "name": name,
        **found,
        "machine": describe_machine(),
        "revision": describe_revision(),
        "held_out": measured,
    }
    (FOLDER / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _rounded(measures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in measures.items()}


def _write_conversations(name: str, played: PolicyResult) -> None:
    """Some, to read, beside the model and not among the results."""
    WORK.mkdir(parents=True, exist_ok=True)
    parts = []
    for one in played.scored[:: max(1, len(played.scored) // _SHOWN_CONVERSATIONS)]:
        said = [f"- {turn.role}: {turn.content}" for turn in one.trajectory.turns]
        parts.append(
            "\n".join([f"## {one.key[0]}, {one.trajectory.episode_reward:.3f}", "", *said, ""])
        )
    (WORK / f"{name}.md").write_text("\n".join(parts), encoding="utf-8")


# --- the table -----------------------------------------------------------------------------------


def table(folder: Path, config: EvaluationConfig) -> str:
    """Markdown: base and warm start, then the algorithms, the best first."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    base, start = found.pop("base"), found.pop("warm_start")
    lines = [
        "| policy | held-out reward | minus base | minus warm start | rubric | its gain | "
        "conversations | seconds | peak GB |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| base | {_mean(base):.3f} | | | {_mean(base, 'rubric'):.3f} | | | | |",
        _line(start, base, None, config),
    ]
    for result in sorted(found.values(), key=_mean, reverse=True):
        lines.append(_line(result, base, start, config))
    return "\n".join(lines) + "\n"


def _line(
    result: Mapping[str, Any],
    base: Mapping[str, Any],
    start: Mapping[str, Any] | None,
    config: EvaluationConfig,
) -> str:
    name = result["name"].replace("_", " ") if start is None else f"`{result['name']}`"
    cells = [
        name,
        f"{_mean(result):.3f}",
        _shown(difference(result, base, "reward", config)),
        _shown(difference(result, start, "reward", config)) if start else "",
        f"{_mean(result, 'rubric'):.3f}",
        _shown(difference(result, start, "rubric", config)) if start else "",
        str(result["conversations"] or ""),
        f"{result['seconds']:.0f}",
        f"{result['peak_bytes'] / 1e9:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def difference(
    result: Mapping[str, Any], other: Mapping[str, Any], measure: str, config: EvaluationConfig
) -> Interval:
    """The mean of paired differences of held-out conversations, whole scenarios drawn again."""
    ours, theirs = _by_key(result, measure), _by_key(other, measure)
    keys = [key for key in ours if key in theirs]
    values = np.array([[ours[key] - theirs[key]] for key in keys], dtype=np.float64)
    (interval,) = cluster_bootstrap(
        values,
        [scenario for scenario, _ in keys],
        samples=config.bootstrap_samples,
        confidence=config.confidence,
        seed=config.bootstrap_seed,
    )
    return interval


def _by_key(result: Mapping[str, Any], measure: str) -> dict[tuple[str, int], float]:
    return {(one["id"], one["seed"]): one["measures"][measure] for one in result["held_out"]}


def _mean(result: Mapping[str, Any], measure: str = "reward") -> float:
    return fmean(_by_key(result, measure).values())


def _shown(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.mean:+.3f}"
    return f"{interval.mean:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def main(arguments: list[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("what", choices=["warm_start", "train", "table"])
    parser.add_argument("algorithms", nargs="*", help="rows of the table, for train")
    given = parser.parse_args(arguments)
    unknown = set(given.algorithms) - set(get_args(Algorithm))
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(ALGORITHMS)}")
    config = load(paths.PARAMS)
    if given.what == "warm_start":
        warm_start(config)
    elif given.what == "train":
        for algorithm in given.algorithms:
            train(config, algorithm)
    else:
        sys.stdout.write(table(FOLDER, config.evaluate))


if __name__ == "__main__":
    main()
