"""Numbers arrive where they are sent, all of them, in order."""

from __future__ import annotations

import io
import json
import math
import threading
from pathlib import Path

import pytest

from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.loggers import (
    CompositeLogger,
    ConsoleLogger,
    JsonlLogger,
    MetricLogger,
    MlflowLogger,
)
from stateset_agents.tracking.mlflow_run import start_run


def test_the_console_shows_a_line_a_step_with_the_metrics_asked_for() -> None:
    stream = io.StringIO()
    logger = ConsoleLogger(["reward", "kl"], stream)
    logger.log(3, {"kl": 0.001234567, "reward": 0.5, "entropy": 2.0})
    logger.log(4, {"reward": 1.0})
    assert stream.getvalue() == "step 3  reward 0.5  kl 0.001235\nstep 4  reward 1\n"


def test_a_jsonl_line_holds_null_where_a_metric_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "new" / "steps.jsonl"
    JsonlLogger(path).log(1, {"reward": 0.25, "kl": math.nan, "ratio": math.inf})
    assert json.loads(path.read_text()) == {"step": 1, "reward": 0.25, "kl": None, "ratio": None}


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    logger = JsonlLogger(path)
    for step in range(4):
        logger.log(step, {"reward": 0.0})
    with path.open("a") as file:
        file.write('{"step": 4, "rew')  # the process was killed here
    resumed = JsonlLogger(path)
    resumed.truncate_after(1)
    resumed.log(2, {"reward": 1.0})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["reward"]) for row in rows] == [(0, 0.0), (1, 0.0), (2, 1.0)]


@pytest.mark.parametrize("every", [1, 3, 100])
def test_mlflow_has_every_step_whatever_the_batch(every: int, tracking: TrackingConfig) -> None:
    with start_run(tracking, "test") as run:
        logger = run.metric_logger(every=every)
        for step in range(5):
            logger.log(step, {"reward": step / 2, "kl": 0.0})
        logger.close()
        logger.close()
    history = run.client.get_metric_history(run.run_id, "reward")
    assert [(one.step, one.value) for one in history] == [(s, s / 2) for s in range(5)]


def test_mlflow_logging_from_another_thread_goes_to_the_run_that_was_named(
    tracking: TrackingConfig,
) -> None:
    with start_run(tracking, "one") as one, start_run(tracking, "two") as two:
        thread = threading.Thread(target=lambda: one.metric_logger().log(0, {"reward": 0.5}))
        thread.start()
        thread.join()
    assert one.client.get_run(one.run_id).data.metrics == {"reward": 0.5}
    assert two.client.get_run(two.run_id).data.metrics == {}


def test_more_metrics_than_mlflow_takes_at_once_all_arrive(tracking: TrackingConfig) -> None:
    with start_run(tracking, "test") as run:
        run.metric_logger().log(0, {f"metric_{i}": float(i) for i in range(1001)})
    assert len(run.client.get_run(run.run_id).data.metrics) == 1001


class _Broken:
    def log(self, step: int, metrics: object) -> None:
        raise AssertionError("never logged to")

    def close(self) -> None:
        raise OSError("disk full")


def test_a_composite_closes_the_others_when_one_cannot_be_closed(
    tracking: TrackingConfig, tmp_path: Path
) -> None:
    with start_run(tracking, "test") as run:
        waiting = run.metric_logger(every=10)
        both = CompositeLogger([JsonlLogger(tmp_path / "steps.jsonl"), waiting])
        both.log(0, {"reward": 0.5})
        with pytest.raises(OSError, match="disk full"):
            CompositeLogger([_Broken(), waiting]).close()
    assert run.client.get_run(run.run_id).data.metrics == {"reward": 0.5}
    assert (tmp_path / "steps.jsonl").read_text() == '{"step": 0, "reward": 0.5}\n'


def test_every_logger_follows_the_protocol() -> None:
    for logger in (ConsoleLogger, JsonlLogger, MlflowLogger, CompositeLogger):
        assert issubclass(logger, MetricLogger)
