"""`stateset-agents compare`: is one checkpoint better than another, and how sure is that?

Owns what is shown. Both play the same scenarios with the same seeds (`evaluation.run`), and the
difference is taken pair by pair with a bootstrap over scenarios (`evaluation.compare`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stateset_agents.cli.console import (
    BaseModelOption,
    ConfigOption,
    JsonOption,
    load_config,
    print_json,
    set_up_logging,
)
from stateset_agents.cli.policies import open_checkpoint

if TYPE_CHECKING:
    from stateset_agents.evaluation.compare import Comparison, Interval
    from stateset_agents.evaluation.results import PolicyName, PolicyResult
    from stateset_agents.run_config import RunConfig


def compare(
    baseline: Annotated[Path, typer.Argument(help="A policy's folder.")],
    challenger: Annotated[Path, typer.Argument(help="The folder that may be better.")],
    config: ConfigOption = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", help="Give it twice or more; default: evaluate.seeds."),
    ] = None,
    per_intent: Annotated[
        int | None,
        typer.Option(min=0, help="Scenarios of each intent, 0 = all; default: the config's."),
    ] = None,
    base_model: BaseModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Play two checkpoints on the same scenarios and seeds, and tell the difference in reward."""
    from stateset_agents.evaluation.compare import compare as compare_results
    from stateset_agents.evaluation.compare import policy_means

    settings = load_config(config)
    set_up_logging()
    if seeds:
        settings.evaluate.seeds = seeds
    if per_intent is not None:
        settings.evaluate.scenarios_per_intent = per_intent
    before, after = _play_both(baseline, challenger, settings, base_model)
    found = compare_results(after, before, settings.evaluate)
    means = tuple(policy_means(one, settings.evaluate) for one in (before, after))
    document = _document(found, means, (baseline, challenger), settings)
    if as_json:
        print_json(document)
    else:
        _print_table(document, settings.evaluate.confidence)


def _play_both(
    baseline: Path, challenger: Path, settings: RunConfig, base_model: Path | None
) -> tuple[PolicyResult, PolicyResult]:
    """One after the other, so that only one is in memory."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from stateset_agents.cli.inputs import read_scenarios
    from stateset_agents.data.scenario_set import to_evaluate_on
    from stateset_agents.evaluation.run import select_scenarios
    from stateset_agents.tracking.policy_folder import read_policy_folder

    for folder in (baseline, challenger):
        read_policy_folder(folder)  # both are looked at before either is played
    scenarios = select_scenarios(
        [one.model_dump() for one in to_evaluate_on(read_scenarios(settings.scenarios))],
        settings.evaluate.scenarios_per_intent,
    )
    total = 2 * len(scenarios) * len(settings.evaluate.seeds)
    console = Console(stderr=True)
    columns = (TextColumn("conversations"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("play", total=total)

        def play(name: PolicyName, folder: Path) -> PolicyResult:
            return _play(
                name, folder, scenarios, settings, base_model, lambda: progress.advance(bar)
            )

        return play("base", baseline), play("challenger", challenger)


def _play(
    name: PolicyName,
    folder: Path,
    scenarios: list[dict[str, Any]],
    settings: RunConfig,
    base_model: Path | None,
    on_conversation: Callable[[], None],
) -> PolicyResult:
    import asyncio

    from stateset_agents.cli.inputs import find_reward_model
    from stateset_agents.core.agent import GenerationSettings
    from stateset_agents.evaluation.run import Candidate, play
    from stateset_agents.rewards.build import build_reward

    reward = build_reward(settings.rewards, find_reward_model(settings.rewards))
    with asyncio.Runner() as runner:
        agent = open_checkpoint(runner, folder, settings, base_model, {})
        spoken = agent.config.model_dump(include=set(GenerationSettings.model_fields))
        try:
            return runner.run(
                play(
                    Candidate(name, str(folder), agent.engine),
                    scenarios,
                    reward,
                    GenerationSettings(**spoken),
                    settings.evaluate,
                    on_conversation=on_conversation,
                )
            )
        finally:
            runner.run(agent.engine.aclose())


def _document(
    found: Comparison,
    means: tuple[dict[str, Interval], ...],
    folders: tuple[Path, Path],
    settings: RunConfig,
) -> dict[str, Any]:
    before, after = means
    reward = found.differences["reward"]
    verdict = "undecided"
    if reward.excludes_zero:
        verdict = "better" if reward.mean > 0 else "worse"
    wins = found.win_rate
    return {
        "baseline": str(folders[0]),
        "challenger": str(folders[1]),
        "verdict": verdict,
        "seeds": settings.evaluate.seeds,
        "pairs": found.pairs,
        "dropped_pairs": found.dropped_pairs,
        "wins": wins.wins,
        "ties": wins.ties,
        "losses": wins.losses,
        "confidence": settings.evaluate.confidence,
        "measures": {
            name: {
                "baseline": before[name].mean,
                "challenger": after[name].mean,
                "difference": one.mean,
                "low": one.low,
                "high": one.high,
            }
            for name, one in found.differences.items()
        },
    }


def _print_table(document: dict[str, Any], confidence: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{document['challenger']} against {document['baseline']}")
    table.add_column("")
    for column in ("baseline", "challenger", f"difference ({100 * confidence:g}% interval)"):
        table.add_column(column, justify="right")
    for name, one in document["measures"].items():
        ends = "" if one["low"] is None else f" ({one['low']:+.3f} to {one['high']:+.3f})"
        table.add_row(
            name.replace("_", " "),
            f"{one['baseline']:.3f}",
            f"{one['challenger']:.3f}",
            f"{one['difference']:+.3f}{ends}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"{document['pairs']} pairs of conversations: {document['wins']} won, "
        f"{document['ties']} tied, {document['losses']} lost; by the reward the challenger is "
        f"{document['verdict']}"
    )
