"""Step: play base, champion and challenger on the held-out scenarios, and compare them.

Reads the sections `agent`, `evaluate`, `rewards`, the held-out scenarios, the base model, the
reward model, the policy, and the champion from the registry. Writes data/reports/evaluation. While
no version is in service the base model stands in for the champion, and is played once.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import gc
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from stateset_agents.core.agent import GenerationSettings
from stateset_agents.core.reward import RewardFunction
from stateset_agents.data.readers import read_scenarios
from stateset_agents.evaluation.config import EvaluationConfig
from stateset_agents.evaluation.report import render_report
from stateset_agents.evaluation.results import PolicyName, PolicyResult
from stateset_agents.evaluation.run import (
    Candidate,
    Scenario,
    measure_fluency,
    play,
    select_scenarios,
)
from stateset_agents.evaluation.summary import (
    Evaluation,
    comparison_document,
    conversation_rows,
    distribution_rows,
    flat_metrics,
    intent_rows,
    summarise,
)
from stateset_agents.exceptions import PipelineError
from stateset_agents.rewards.build import build_reward
from stateset_agents.run_config import RunConfig
from stateset_agents.tracking.lineage import collect_lineage
from stateset_agents.tracking.mlflow_run import RUN_LINK, start_run
from stateset_agents.tracking.registry import (
    champion_version,
    download_version,
    generation_settings,
)
from tasks import entry, paths
from tasks.tuned import with_tuned

HELDOUT = paths.VALIDATED / "heldout.jsonl"

# Rows of the table at the end, in this order, where they were measured.
_SHOWN = ("reward", "rubric", "safety", "learned", "log_likelihood", "distinct_2", "answer_tokens")


@dataclass(frozen=True, slots=True)
class _Source:
    """A policy that is to be played: its weights, its tokenizer, and how it speaks in service."""

    name: PolicyName
    title: str
    folder: Path
    settings: GenerationSettings
    version: str | None = None
    # The base's: training keeps it, and an adapter's folder may have none.
    tokenizer: Path = field(default=paths.BASE_MODEL)


def run(config: RunConfig) -> None:
    """Evaluate and write data/reports/evaluation; nothing is written if any part of it fails."""
    config = with_tuned(config)
    learned = config.rewards.weights.learned > 0
    _check_inputs(learned)
    scenarios = select_scenarios(
        [scenario.model_dump() for scenario in read_scenarios(HELDOUT)],
        config.evaluate.scenarios_per_intent,
    )
    reward_function = build_reward(config.rewards, paths.REWARD_MODEL if learned else None)
    origins = collect_lineage(
        {
            "base_model": paths.BASE_MODEL,
            "heldout": HELDOUT,
            "policy": paths.POLICY,
            "reward_model": paths.REWARD_MODEL,
        }
    )
    settings = {
        name: getattr(config, name).model_dump() for name in ("agent", "evaluate", "rewards")
    }
    with (
        start_run(config.tracking, "evaluate_policy", origins, params=settings) as tracked,
        _sources(config) as sources,
        _progress(sources, scenarios, config.evaluate) as advance,
    ):
        policies = asyncio.run(_play_all(sources, scenarios, reward_function, config, advance))
        policies = _measure_fluency(policies, sources, config, advance)
        evaluation = summarise(policies, config.evaluate)
        # which weights these figures are of: registration refuses others
        metrics = flat_metrics(evaluation) | {"policy.sha256": origins["data.policy.sha256"]}
        _write(evaluation, config.evaluate, metrics)
        tracked.log_metrics({k: v for k, v in metrics.items() if not isinstance(v, str)})
        tracked.log_artifact(paths.EVALUATION_REPORT, "evaluation")
        tracked.set_tags({"champion.version": evaluation.champion_version})
        tracked.write_link(paths.EVALUATION_REPORT / RUN_LINK)
    _print_summary(evaluation)


def _check_inputs(learned: bool) -> None:
    """Name everything that is missing and the step that makes it."""
    makers = {
        HELDOUT: "validate_scenarios",
        paths.BASE_MODEL: "fetch_base_model",
        paths.POLICY: "train_policy",
    }
    if learned:
        makers[paths.REWARD_MODEL] = "train_reward_model"
    missing = [
        f"{path} is missing; run the step {step}"
        for path, step in makers.items()
        if not path.exists()
    ]
    if missing:
        raise PipelineError("\n".join(missing))


@contextlib.contextmanager
def _sources(config: RunConfig) -> Iterator[list[_Source]]:
    """Base, champion if there is one, challenger; the champion's folder lasts as long as this."""
    base = _Source("base", config.base_model.source, paths.BASE_MODEL, config.agent)
    challenger = _Source("challenger", str(paths.POLICY), paths.POLICY, config.agent)
    version = champion_version(config.tracking)
    if version is None:
        yield [base, challenger]
        return
    name = config.tracking.registered_model
    paths.STATE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="champion-", dir=paths.STATE) as temporary:
        folder = Path(temporary) / "policy"
        download_version(config.tracking, f"models:/{name}/{version}", folder)
        # A version brings its own tokenizer and settings: it may be older than the base model
        # and the section `agent` of today, and it is compared as people meet it.
        settings = _own_settings(folder) or config.agent
        yield [base, _Source("champion", name, folder, settings, version, folder), challenger]


def _own_settings(folder: Path) -> GenerationSettings | None:
    """The settings that a version is served with; None for one that was registered without."""
    own = generation_settings(folder)
    known = {name: own[name] for name in own if name in GenerationSettings.model_fields}
    return GenerationSettings(**known) if known else None


Advance = Callable[[str, int], None]


@contextlib.contextmanager
def _progress(
    sources: Sequence[_Source], scenarios: Sequence[Scenario], config: EvaluationConfig
) -> Iterator[Advance]:
    """A bar over all conversations and fluency passes; call it with what is done and how much."""
    conversations = len(scenarios) * len(config.seeds) * len(sources)
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("evaluate", total=conversations + len(scenarios))

        def advance(what: str, amount: int) -> None:
            progress.update(bar, description=f"evaluate: {what}", advance=amount)

        yield advance


async def _play_all(
    sources: Sequence[_Source],
    scenarios: Sequence[Scenario],
    reward_function: RewardFunction,
    config: RunConfig,
    advance: Advance,
) -> list[PolicyResult]:
    """One policy after the other, so that only one is in memory and their times compare."""
    return [
        await _play_one(source, scenarios, reward_function, config, advance) for source in sources
    ]


async def _play_one(
    source: _Source,
    scenarios: Sequence[Scenario],
    reward_function: RewardFunction,
    config: RunConfig,
    advance: Advance,
) -> PolicyResult:
    from stateset_agents.inference.loading import load_tokenizer
    from stateset_agents.inference.transformers_engine import TransformersEngine

    advance(source.name, 0)
    engine = TransformersEngine(_load(source.folder, config), load_tokenizer(source.tokenizer))
    try:
        return await play(
            Candidate(source.name, source.title, engine, source.version),
            scenarios,
            reward_function,
            source.settings,
            config.evaluate,
            on_conversation=lambda: advance(source.name, 1),
        )
    finally:
        await engine.aclose()
        del engine
        gc.collect()


def _measure_fluency(
    policies: Sequence[PolicyResult],
    sources: Sequence[_Source],
    config: RunConfig,
    advance: Advance,
) -> list[PolicyResult]:
    """Add the log-likelihoods under the base model, to the policies that speak in its tokens.

    A champion of another family has none: its token ids mean other words to the base.
    """
    from stateset_agents.inference.loading import load_tokenizer

    advance("fluency", 0)
    words = load_tokenizer(paths.BASE_MODEL).hf.get_vocab()
    alike = {
        source.name
        for source in sources
        if source.tokenizer == paths.BASE_MODEL
        or load_tokenizer(source.tokenizer).hf.get_vocab() == words
    }
    measured = measure_fluency(
        [policy for policy in policies if policy.name in alike],
        _load(paths.BASE_MODEL, config),
        config.evaluate,
        on_scenario=lambda: advance("fluency", 1),
    )
    by_name = {policy.name: policy for policy in measured}
    return [by_name.get(policy.name, policy) for policy in policies]


def _load(folder: Path, config: RunConfig) -> Any:
    """The weights on the device that the agent would use."""
    import torch

    from stateset_agents.evaluation.policies import load_policy_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_policy_model(
        folder, paths.BASE_MODEL, dtype=config.agent.torch_dtype, device=device
    )


def _write(
    evaluation: Evaluation, config: EvaluationConfig, metrics: Mapping[str, float | str]
) -> None:
    """Write every file beside its place, then move all of them; metrics.json comes last."""
    page = render_report(
        evaluation,
        conversations=config.report_conversations,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    lines = [json.dumps(row, ensure_ascii=False) for row in conversation_rows(evaluation)]
    texts = {
        "report.html": page,
        "conversations.jsonl": "\n".join(lines) + "\n",
        "comparison.json": _json(comparison_document(evaluation)),
        "by_intent.json": _json(intent_rows(evaluation)),
        "metrics.json": _json(metrics),
    }
    folder = paths.EVALUATION_REPORT
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as temporary:
        unfinished = Path(temporary)
        _write_csv(unfinished / "reward_distribution.csv", distribution_rows(evaluation))
        for name, text in texts.items():
            (unfinished / name).write_text(text, encoding="utf-8")
        for name in ("reward_distribution.csv", *texts):
            os.replace(unfinished / name, folder / name)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _print_summary(evaluation: Evaluation) -> None:
    """The table at the end: means, and the difference with its interval."""
    metrics = flat_metrics(evaluation)
    other = "base" if evaluation.base_stands_in else "champion"
    table = Table(title=f"Held-out evaluation, {metrics['conversations']} conversations a policy")
    table.add_column("")
    for name in evaluation.policies:
        table.add_column(name, justify="right")
    share = f"{100 * evaluation.confidence:g}%"
    table.add_column(f"challenger - {other} ({share} interval)", justify="right")
    for measure in _SHOWN:
        if f"{measure}.challenger" not in metrics:
            continue
        found = [metrics.get(f"{measure}.{name}") for name in evaluation.policies]
        values = ["-" if value is None else f"{value:.3f}" for value in found]
        table.add_row(measure.replace("_", " "), *values, _difference(evaluation, measure))
    console = Console()
    console.print(table)
    outside = [band.title for band in evaluation.bands if not band.inside]
    console.print(f"bands: {'out of band: ' + ', '.join(outside) if outside else 'all in band'}")
    console.print(f"report: {paths.EVALUATION_REPORT / 'report.html'}")


def _difference(evaluation: Evaluation, measure: str) -> str:
    interval = evaluation.versus_champion.differences.get(measure)
    if interval is None:
        return ""
    ends = "" if interval.low is None else f" ({interval.low:+.3f} to {interval.high:+.3f})"
    return f"{interval.mean:+.3f}{ends}"


if __name__ == "__main__":
    entry.main(run)
