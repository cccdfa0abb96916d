"""STATESET_DEBUG: read at import and at run time, with more said and more checked."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stateset_agents import debug
from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.exceptions import TrainingError
from stateset_agents.training.debug_checks import check_batch
from tests.training.made import make_advantages, make_rows, to_batch
from tests.training.runs import make_trainer, train

PACKAGE = logging.getLogger("stateset_agents")


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(debug.VARIABLE, raising=False)
    yield
    monkeypatch.delenv(debug.VARIABLE, raising=False)
    debug.apply()


def _run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


SAY = "import logging; logging.getLogger('stateset_agents.training').debug('said')"


def test_set_before_the_import_it_opens_the_packages_loggers() -> None:
    assert "DEBUG stateset_agents.training: said" in _run(
        f"import stateset_agents; {SAY}", STATESET_DEBUG="1"
    )
    assert _run(f"import stateset_agents; {SAY}", STATESET_DEBUG="0") == ""


def test_where_the_program_has_logging_of_its_own_a_record_is_written_once() -> None:
    code = (
        "import logging; logging.basicConfig(level=logging.DEBUG); import os; "
        f"os.environ['STATESET_DEBUG'] = '1'; import stateset_agents; {SAY}"
    )
    assert _run(code).count("said") == 1


def test_set_at_run_time_a_run_tells_every_conversation(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"num_episodes": 1, "num_generations": 2}
    quiet = make_trainer(tiny_model_dir, **settings)
    train(quiet)
    assert not [record for record in caplog.records if record.levelno == logging.DEBUG]

    monkeypatch.setenv(debug.VARIABLE, "1")
    train(make_trainer(tiny_model_dir, **settings))

    told = [r.getMessage() for r in caplog.records if r.name.endswith("debug_checks")]
    assert sum("reward" in text and "answers:" in text for text in told) == 2
    assert any(text.startswith("batch: 2 rows") for text in told)


def test_set_at_run_time_it_is_read_when_an_agent_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(debug.VARIABLE, "1")

    MultiTurnAgent(AgentConfig(model_name="stub://demo", use_stub_model=True))

    assert PACKAGE.level == logging.DEBUG


def test_switched_off_again_the_loggers_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    before = PACKAGE.level, list(PACKAGE.handlers)
    monkeypatch.setenv(debug.VARIABLE, "1")
    assert debug.apply()
    assert PACKAGE.level == logging.DEBUG
    monkeypatch.setenv(debug.VARIABLE, "off")

    assert not debug.apply()

    assert (PACKAGE.level, list(PACKAGE.handlers)) == before


def test_while_it_is_on_a_batch_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows()
    batch = to_batch(rows, make_advantages(rows))
    sampled = batch.loss_mask
    broken = replace(
        batch,
        token_ids=batch.token_ids + 10_000,
        sampling_logprobs=torch.where(sampled, 0.5, batch.sampling_logprobs),
        advantages=torch.where(sampled, math.nan, batch.advantages),
    )
    check_batch(broken, 480)  # off: nothing is looked at

    monkeypatch.setenv(debug.VARIABLE, "1")
    check_batch(batch, 480)
    with pytest.raises(TrainingError) as caught:
        check_batch(broken, 480)

    for part in ("the model has 480", "above 0", "advantages that are not finite"):
        assert part in str(caught.value)
