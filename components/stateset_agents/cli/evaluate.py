"""`stateset-agents evaluate`: ask a checkpoint, one message, a file of prompts, or line by line.

Owns what is printed. Answers are scored by the section `rewards` as far as it needs no scenario;
the comparison of two policies is `compare`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stateset_agents.cli.console import (
    BaseModelOption,
    ConfigOption,
    JsonOption,
    MaxNewTokensOption,
    SeedOption,
    TemperatureOption,
    load_config,
    notice,
    print_json,
    sampling_overrides,
    set_up_logging,
)
from stateset_agents.cli.exit_codes import ExitCode
from stateset_agents.cli.policies import open_checkpoint

if TYPE_CHECKING:
    import asyncio

    from stateset_agents.core.agent import MultiTurnAgent
    from stateset_agents.core.trajectory import TrajectoryGroup
    from stateset_agents.evaluation.prompts import Prompt
    from stateset_agents.rewards.config import RewardsConfig


def evaluate(
    checkpoint: Annotated[
        Path, typer.Option(help="A policy's folder, such as checkpoints/final.", show_default=False)
    ],
    message: Annotated[str | None, typer.Option(help="Ask this and end.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--input", help="A .json or .jsonl file of prompts, answered and scored."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="With --input: the .jsonl file for the answers.")
    ] = None,
    config: ConfigOption = None,
    base_model: BaseModelOption = None,
    temperature: TemperatureOption = None,
    max_new_tokens: MaxNewTokensOption = None,
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a checkpoint; without --message and --input line by line."""
    if message is not None and prompts is not None:
        raise typer.BadParameter("give --message or --input, not both")
    if output is not None and prompts is None:
        raise typer.BadParameter("--output needs --input: it is where the answers to that file go")
    import asyncio

    from stateset_agents.evaluation.prompts import Prompt, read_prompts

    settings = load_config(config)
    set_up_logging()
    if prompts is not None:
        asked = read_prompts(prompts)
    elif message is not None:
        asked = [Prompt(id="message", message=message)] if message.strip() else []
        if not asked:
            raise typer.BadParameter("--message is empty; give some text")
    overrides = sampling_overrides(temperature, max_new_tokens, seed)
    with asyncio.Runner() as runner:
        agent = open_checkpoint(runner, checkpoint, settings, base_model, overrides)
        try:
            if prompts is None and message is None:
                _line_by_line(runner, agent, settings.rewards, as_json=as_json)
                return
            groups = runner.run(_answer(agent, asked, settings.rewards, seed or 0))
        finally:
            runner.run(agent.engine.aclose())
    _show(groups, output, is_single=message is not None, as_json=as_json)
    if any(group.trajectories[0].failed for group in groups):
        raise typer.Exit(ExitCode.FAILED)


async def _answer(
    agent: MultiTurnAgent, asked: Sequence[Prompt], rewards: RewardsConfig, seed: int
) -> list[TrajectoryGroup]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from stateset_agents.evaluation.prompts import answer_prompts, score_answers

    console = Console(stderr=True)
    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("answers", total=len(asked))
        groups = await answer_prompts(
            agent, asked, seed=seed, on_answer=lambda: progress.advance(bar)
        )
    with_rubric, without = _rewards_of_prompts(rewards)
    await score_answers(groups, with_rubric, without)
    return groups


def _rewards_of_prompts(rewards: RewardsConfig) -> tuple[Any, Any]:
    """The composite for prompts with a rubric and the one for those without; None for none."""
    from stateset_agents.cli.console import REWARD_MODEL
    from stateset_agents.rewards.build import build_reward

    weights = rewards.weights
    reward_model = REWARD_MODEL if weights.learned and REWARD_MODEL.is_dir() else None
    if reward_model is None:
        weights = weights.model_copy(update={"learned": 0.0})
    bare = weights.model_copy(update={"rubric": 0.0})

    def build(chosen: Any) -> Any:
        if not any(chosen.model_dump().values()):
            return None
        return build_reward(rewards.model_copy(update={"weights": chosen}), reward_model)

    return build(weights), build(bare)


def _show(
    groups: Sequence[TrajectoryGroup], output: Path | None, *, is_single: bool, as_json: bool
) -> None:
    from stateset_agents.evaluation.prompts import answer_row

    rows = [answer_row(group) for group in groups]
    summary = _summary(rows)
    if output is not None:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("\n".join(lines) + "\n", encoding="utf-8")
        summary["output"] = str(output)
    if as_json:
        shown = rows[0] if is_single else summary if output else {**summary, "answers": rows}
        print_json(shown)
        return
    if output is None:
        for row in rows:
            if not is_single:
                print(f"{row['id']}> {row['messages'][-1]['content']}")
            print(row["answer"] if row["error"] is None else f"error: {row['error']}")
    notice(_in_words(summary))


def _summary(rows: Sequence[Any]) -> dict[str, Any]:
    from statistics import fmean

    scored = [row for row in rows if row["scores"] is not None]
    names = list(dict.fromkeys(name for row in scored for name in row["scores"]))
    means = {
        name: fmean(row["scores"][name] for row in scored if name in row["scores"])
        for name in names
    }
    return {
        "prompts": len(rows),
        "failed": sum(row["error"] is not None for row in rows),
        "mean_reward": fmean(row["reward"] for row in scored) if scored else None,
        "mean_scores": means,
    }


def _in_words(summary: dict[str, Any]) -> str:
    text = (
        f"{summary['prompts']} answered"
        if not summary["failed"]
        else (f"{summary['failed']} of {summary['prompts']} could not be answered")
    )
    if summary["mean_reward"] is not None:
        parts = ", ".join(f"{name} {value:.2f}" for name, value in summary["mean_scores"].items())
        text += f"; reward {summary['mean_reward']:.3f} ({parts})"
    return text + (f"; answers in {summary['output']}" if "output" in summary else "")


def _line_by_line(
    runner: asyncio.Runner, agent: MultiTurnAgent, rewards: RewardsConfig, *, as_json: bool
) -> None:
    """Each answer is followed by the score of the conversation so far, on standard error."""
    from stateset_agents.cli.conversation import converse
    from stateset_agents.core.trajectory import (
        ConversationTurn,
        MultiTurnTrajectory,
        TrajectoryGroup,
    )
    from stateset_agents.rollout.scoring import score_groups

    if as_json:
        raise typer.BadParameter("--json needs --message or --input: there is no one to read it")
    reward = _rewards_of_prompts(rewards)[1]

    def tell_score(history: list[dict[str, str]]) -> None:
        turns = [ConversationTurn(one["role"], one["content"]) for one in history]
        group = TrajectoryGroup("talk", {"id": "talk"}, [MultiTurnTrajectory("talk", turns)])
        runner.run(score_groups([group], reward))
        scored = group.trajectories[0]
        parts = ", ".join(f"{name} {value:.2f}" for name, value in scored.reward_parts.items())
        notice(f"  reward {scored.episode_reward:.3f} ({parts})")

    converse(runner, agent, tell_score if reward is not None else None)
