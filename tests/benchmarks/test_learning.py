"""What the comparison on the real model asks of each algorithm, and what it compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from benchmarks.learning import EPISODES, difference, settings_of, table
from stateset_agents.evaluation.config import EvaluationConfig
from stateset_agents.run_config import load
from stateset_agents.training.algorithms import Algorithm


def result(name: str, **rewards: float) -> dict[str, Any]:
    held_out = [
        {"id": key, "seed": 1, "measures": {"reward": value, "rubric": value}}
        for key, value in rewards.items()
    ]
    return {"name": name, "held_out": held_out}


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
def test_every_algorithm_takes_the_line_s_settings(algorithm: Algorithm) -> None:
    line = load("params.yaml").train
    settings = settings_of(line, algorithm)

    assert settings.algorithm == algorithm
    assert settings.learning_rate == line.learning_rate
    assert (settings.num_episodes, settings.warm_start_steps) == (EPISODES, 0)
    assert settings.loss_aggregation is None


def test_conversations_are_compared_with_those_of_the_same_scenario() -> None:
    ours, theirs = result("a", x=0.5, y=0.9), result("b", y=0.5, x=0.3)
    interval = difference(ours, theirs, "reward", EvaluationConfig())

    assert interval.mean == pytest.approx((0.2 + 0.4) / 2)
    # with two scenarios the widest draws are one of them twice
    assert interval.low == pytest.approx(0.2)
    assert interval.high == pytest.approx(0.4)


def test_the_table_has_the_best_algorithm_first(tmp_path: Path) -> None:
    run = {"conversations": 4, "seconds": 2.0, "peak_bytes": 3e9}
    for name, reward in (("base", 0.1), ("warm_start", 0.2), ("grpo", 0.3), ("ppo", 0.4)):
        found = {**result(name, x=reward, y=reward), **run}
        (tmp_path / f"{name}.json").write_text(json.dumps(found))

    rows = table(tmp_path, EvaluationConfig()).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["base", "warm start", "`ppo`", "`grpo`"]
    assert "+0.200 (+0.200 to +0.200)" in rows[2]
