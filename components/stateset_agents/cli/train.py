"""`stateset-agents train`: from a configuration to `<save>/final`.

Owns what a run is given, what it leaves in the folder that `--save` names, and what is shown.

    <save>/step_<n>            checkpoints, the newest `train.save_total_limit`
    <save>/final               the policy, for evaluate, compare, chat and serve
    <save>/metrics.jsonl       every logged step's numbers
    <save>/conversations.md    the best and the worst conversations of three steps
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stateset_agents.cli.console import (
    ConfigOption,
    JsonOption,
    find_config,
    load_config,
    notice,
    print_json,
    set_up_logging,
)
from stateset_agents.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from stateset_agents.run_config import RunConfig
    from stateset_agents.training.callbacks import TrainingCallback
    from stateset_agents.training.rehearsal import Rehearsal
    from stateset_agents.training.trainer import Trainer

DEFAULT_SAVE = Path("checkpoints")
LINE_TUNED = Path("data/tuned.yaml")
STUB_NOTICE = (
    "stub: answers are fixed, so conversations are played and scored, and nothing is learned"
)


def train(
    config: ConfigOption = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Folder for checkpoints and the trained policy; default: checkpoints, or that of "
            "the checkpoint which is resumed."
        ),
    ] = None,
    stub: Annotated[
        bool, typer.Option("--stub", help="Play and score without a model; nothing is learned.")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(help="A checkpoint (step_N), or a folder whose newest one is taken."),
    ] = None,
    tuned: Annotated[
        Path | None,
        typer.Option(
            help="What a search found, laid over the configuration: data/tuned.yaml of the "
            "retraining line. Default: the configuration alone."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a policy; Ctrl-C saves a checkpoint and says how to go on."""
    settings = _with_tuned(load_config(config, is_needed=True), tuned, find_config(config))
    set_up_logging()
    save_dir = save or _folder_of(resume) or DEFAULT_SAVE
    _check_resumed(resume, stub=stub)
    run = _rehearsal(settings) if stub else _trainer(settings)
    if stub:
        notice(STUB_NOTICE)
    final = _run_to_end(run, save_dir, resume, _command(find_config(config), tuned, stub=stub))
    summary = {
        "final": str(final),
        "stub": stub,
        "learned": not stub,
        "steps": run.step,
        "stop_reason": run.stop_reason,
        **_rewards(save_dir / "metrics.jsonl"),
        "metrics": str(save_dir / "metrics.jsonl"),
        "conversations": str(save_dir / "conversations.md"),
    }
    if as_json:
        print_json(summary)
    else:
        _print_summary(summary)


def _run_to_end(
    run: Trainer | Rehearsal,
    save_dir: Path,
    resume: Path | None,
    again: str,
) -> Path:
    """Train and write what is left behind; the folder of the policy. `again` is the command."""
    import asyncio

    from rich.console import Console

    from stateset_agents.cli.interruption import InterruptedRunError, Interruption
    from stateset_agents.training.callbacks import CheckpointCallback
    from stateset_agents.training.conversation_samples import ConversationSamples
    from stateset_agents.training.progress import ProgressBar

    samples = ConversationSamples()
    try:
        with ProgressBar(Console(stderr=True)) as bar, Interruption(save_dir) as interruption:
            callbacks = [
                bar,
                samples,
                _metrics_file(run, save_dir),
                CheckpointCallback(save_dir, final=False),
                interruption,
            ]
            return asyncio.run(_train_and_save(run, callbacks, resume, save_dir, samples))
    except InterruptedRunError as stopped:
        notice(f"interrupted after step {stopped.step} of {run.total_steps}")
        _say_how_to_go_on(stopped.checkpoint, again)
    except KeyboardInterrupt:
        notice(f"stopped at once, in step {run.step + 1} of {run.total_steps}")
        _say_how_to_go_on(interruption.newest_checkpoint(), again)
    raise typer.Exit(ExitCode.INTERRUPTED)


async def _train_and_save(
    run: Trainer | Rehearsal,
    callbacks: Sequence[TrainingCallback],
    resume: Path | None,
    save_dir: Path,
    samples: Any,
) -> Path:
    import asyncio

    from stateset_agents.cli.interruption import quiet_about_interrupts
    from stateset_agents.training.rehearsal import Rehearsal

    asyncio.get_running_loop().set_exception_handler(quiet_about_interrupts)
    try:
        await run.train(callbacks, resume_from=resume)
        (save_dir / "conversations.md").write_text(samples.to_markdown(), encoding="utf-8")
        if isinstance(run, Rehearsal):
            return run.save_final(save_dir)
        from stateset_agents.training.final_policy import save_final

        return save_final(run, save_dir)
    finally:
        await run.close()


def _trainer(settings: RunConfig) -> Trainer:
    from stateset_agents.cli.inputs import (
        fetch_base_model,
        find_reward_model,
        read_pairs,
        read_scenarios,
    )
    from stateset_agents.data.scenario_set import to_train_on

    scenarios = read_scenarios(settings.scenarios)
    trained_on = to_train_on(scenarios)
    pairs = read_pairs(settings.scenarios) if settings.train.warm_start_steps else []
    reward_model = find_reward_model(settings.rewards)
    base_model = fetch_base_model(settings)
    from stateset_agents.training.from_sections import make_trainer

    return make_trainer(
        base_model=base_model,
        scenarios=trained_on,
        agent=settings.agent,
        rewards=settings.rewards,
        train=settings.train,
        reward_model=reward_model,
        pairs=pairs,
        eval_scenarios=[one for one in scenarios if one.split == "validation"],
    )


def _rehearsal(settings: RunConfig) -> Rehearsal:
    from stateset_agents.cli.inputs import read_pairs, read_scenarios, without_models
    from stateset_agents.data.scenario_set import make_environment, to_train_on
    from stateset_agents.rewards.build import build_reward
    from stateset_agents.training.rehearsal import Rehearsal

    scenarios = to_train_on(read_scenarios(settings.scenarios))
    if settings.train.warm_start_steps:
        read_pairs(settings.scenarios)  # what is wrong with them is told here as well
    reward = build_reward(without_models(settings.rewards))
    return Rehearsal(make_environment(scenarios), reward, settings.train, settings.agent)


def _command(config: Path | None, tuned: Path | None, *, stub: bool) -> str:
    """What starts this run."""
    also = f"{f' --tuned {tuned}' if tuned else ''}{' --stub' if stub else ''}"
    return f"stateset-agents train --config {config}{also}"


def _with_tuned(settings: RunConfig, tuned: Path | None, config: Path | None) -> RunConfig:
    """Lay over what `--tuned` names. The line does so by itself; here the file that `--config`
    names decides alone, and what a search has left beside it is told.
    """
    from stateset_agents.run_config import lay_over, read_tuned

    beside = config.parent / LINE_TUNED if config else LINE_TUNED
    if tuned is not None:
        return lay_over(settings, read_tuned(tuned))
    if beside.is_file() and any(read_tuned(beside).values()):
        notice(
            f"{beside} holds what a search found, with which the retraining line trains; this run "
            f"takes {config} alone: for both give --tuned {beside}"
        )
    return settings


def _metrics_file(run: Trainer | Rehearsal, save_dir: Path) -> TrainingCallback:
    """Steps' numbers go to a file; of a run that is resumed, later lines are dropped first."""
    from stateset_agents.tracking.loggers import JsonlLogger
    from stateset_agents.training.callbacks import TrainingCallback

    steps = JsonlLogger(save_dir / "metrics.jsonl")
    run.logger = steps

    class Metrics(TrainingCallback):
        async def on_train_start(self, trainer: Trainer) -> None:
            steps.truncate_after(trainer.step)

    return Metrics()


def _folder_of(resume: Path | None) -> Path | None:
    if resume is None:
        return None
    return resume.parent if resume.name.startswith("step_") else resume


def _check_resumed(resume: Path | None, *, stub: bool) -> None:
    """Tell the two kinds of checkpoint apart before a model is loaded."""
    from stateset_agents.exceptions import CheckpointError

    if resume is None:
        return
    if not resume.is_dir():
        raise CheckpointError(
            f"{resume}: there is no such folder; name one that `train --save` wrote, such as "
            f"{DEFAULT_SAVE}/step_1000"
        )
    steps = [resume] if (resume / "state.json").is_file() else list(resume.glob("step_*"))
    if not stub and steps and not any((one / "weights.safetensors").is_file() for one in steps):
        raise CheckpointError(
            f"{resume} is of a run with --stub, which has no weights to go on from: resume it with "
            "--stub, or leave --resume out"
        )


def _say_how_to_go_on(checkpoint: Path | None, again: str) -> None:
    if checkpoint is None:
        notice("nothing was saved yet; start again with the same command")
    else:
        notice(f"saved {checkpoint}; go on with:\n  {again} --resume {checkpoint}")


def _rewards(metrics: Path) -> dict[str, Any]:
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    steps = [json.loads(line) for line in lines]
    return {
        "first_reward": steps[0]["reward/mean"] if steps else None,
        "last_reward": steps[-1]["reward/mean"] if steps else None,
    }


def _print_summary(summary: dict[str, Any]) -> None:
    done = "played and scored, nothing learned" if summary["stub"] else "trained"
    print(f"{done} in {summary['steps']} steps", end="")
    if summary["first_reward"] is not None:
        first, last = summary["first_reward"], summary["last_reward"]
        print(f": mean reward {first:.3f} in the first, {last:.3f} in the last", end="")
    print()
    if summary["stop_reason"]:
        print(f"ended early: {summary['stop_reason']}")
    print(f"policy:        {summary['final']}")
    print(f"numbers:       {summary['metrics']}")
    print(f"conversations: {summary['conversations']}")
    print(f"ask it:        stateset-agents evaluate --checkpoint {summary['final']}")
