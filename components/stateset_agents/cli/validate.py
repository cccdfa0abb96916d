"""`stateset-agents validate`: is a configuration, and the data it names, fit for a run?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from stateset_agents.cli.console import (
    ConfigOption,
    JsonOption,
    find_config,
    load_config,
    print_json,
)
from stateset_agents.cli.exit_codes import ExitCode
from stateset_agents.exceptions import ConfigurationError, DataError

if TYPE_CHECKING:
    from stateset_agents.run_config import RunConfig


def validate(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check a configuration and the data it names, and tell every problem of them at once."""
    problems: list[str] = []
    found: dict[str, Any] = {"config": str(find_config(config))}
    with _collecting(problems):
        settings = load_config(config, is_needed=True)
        found |= _look_at_data(settings, problems)
    report = {"valid": not problems, **found, "problems": problems}
    if as_json:
        print_json(report)
    else:
        for problem in problems:
            print(problem)
        counts = ", ".join(f"{value} {name}" for name, value in found.get("data", {}).items())
        print(f"{len(problems)} problems" if problems else f"{found['config']} is valid: {counts}")
    if problems:
        raise typer.Exit(ExitCode.FAILED)


def _look_at_data(settings: RunConfig, problems: list[str]) -> dict[str, Any]:
    from stateset_agents.cli.inputs import find_reward_model, read_pairs, read_scenarios
    from stateset_agents.data.scenario_set import make_environment, to_evaluate_on, to_train_on
    from stateset_agents.rewards.build import build_reward

    counts: Counter[str] = Counter()
    with _collecting(problems):
        scenarios = read_scenarios(settings.scenarios)
        counts["scenarios"] = len(scenarios)
        counts["scenarios to train on"] = len(to_train_on(scenarios))
        counts["scenarios to evaluate on"] = len(to_evaluate_on(scenarios))
        make_environment(scenarios)
        bare = [one.id for one in scenarios if one.rubric is None]
        rewards = settings.rewards
        if bare and rewards.weights.rubric and rewards.without_rubric is None:
            problems.append(
                f"rewards.weights.rubric is {rewards.weights.rubric}, but {len(bare)} of the "
                f"{len(scenarios)} scenarios have no rubric, first {bare[0]!r}: write rubrics, set "
                "rewards.without_rubric to the score of these, or rewards.weights.rubric to 0"
            )
    if settings.train.warm_start_steps:
        with _collecting(problems):
            counts["pairs"] = len(read_pairs(settings.scenarios))
    problems += _problems_of_model(settings)
    with _collecting(problems):
        find_reward_model(settings.rewards)
    with _collecting(problems):
        weights = settings.rewards.weights.model_copy(update={"learned": 0.0})
        if any(weights.model_dump().values()):
            build_reward(settings.rewards.model_copy(update={"weights": weights}))
    return {"data": dict(counts)}


def _problems_of_model(settings: RunConfig) -> Iterator[str]:
    """As far as the model is here already: fetching it is `train`'s to do."""
    from stateset_agents.cli.inputs import known_base_model
    from stateset_agents.training.memory import read_shape

    folder = known_base_model(settings)
    if folder is None:
        return
    if not folder.is_dir():
        yield f"base_model.source: found {str(folder)!r}, which is no folder; name a model's folder"
        return
    shape, train = read_shape(folder), settings.train
    if shape is None or not shape.max_positions:
        return
    if train.max_prompt_length >= shape.max_positions:
        yield (
            f"train.max_prompt_length: found {train.max_prompt_length}, allowed: below "
            f"{shape.max_positions}, the positions of {folder}, which an answer needs as well"
        )


@contextmanager
def _collecting(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except (ConfigurationError, DataError) as error:
        problems += error.problems
