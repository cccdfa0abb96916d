"""Studies live in a journal file or in PostgreSQL, by one setting."""

from __future__ import annotations

import signal
from pathlib import Path

import optuna
import pytest

from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.hpo.storage import open_storage
from stateset_agents.training.hpo.study import StoredStudy
from tests.infra.servers import Postgres, free_port
from tests.training.hpo.studies import in_process, make_plan, outcome, work


def best_of_a_second_process(address: str) -> float:
    """Run three trials, then read the study again through a storage of its own."""
    study = optuna.create_study(storage=open_storage(address), study_name="s")
    for x in (3.0, 1.0, 2.0):
        study.enqueue_trial({"x": x})
    study.optimize(lambda trial: trial.suggest_float("x", 0, 5), n_trials=3)
    return optuna.load_study(storage=open_storage(address), study_name="s").best_value


def test_a_path_keeps_the_study_in_a_journal(tmp_path: Path) -> None:
    assert best_of_a_second_process(str(tmp_path / "studies/journal.log")) == 1.0
    assert (tmp_path / "studies/journal.log").stat().st_size > 0


def test_a_postgresql_url_keeps_the_study_in_the_database(postgres: Postgres) -> None:
    assert best_of_a_second_process(postgres.url("optuna")) == 1.0


def test_in_postgresql_a_killed_workers_trial_goes_on_as_in_a_journal(
    postgres: Postgres, tmp_path: Path
) -> None:
    plan, address = make_plan("killed", n_trials=12), postgres.url("optuna")
    work(str(tmp_path / "journal"), plan)
    process = in_process(work, address, plan, 4, "report")
    process.join()
    assert process.exitcode == -signal.SIGKILL
    beside = [in_process(work, address, plan), in_process(work, address, make_plan("other"))]
    for process in beside:
        process.join()
        assert process.exitcode == 0
    expected = outcome(StoredStudy(str(tmp_path / "journal"), plan).records())
    assert outcome(StoredStudy(address, plan).records()) == expected


def test_sqlite_is_refused_with_what_to_use_instead() -> None:
    with pytest.raises(ConfigurationError, match=r"sqlite:// is not supported; give a file path"):
        open_storage("sqlite:///study.db")


def test_a_file_of_something_else_is_one_clear_error(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("no journal\n")
    with pytest.raises(ConfigurationError, match="is no journal of studies"):
        open_storage(str(other))
    assert other.read_text() == "no journal\n"


def test_a_database_that_does_not_answer_is_one_clear_error() -> None:
    address = f"postgresql+psycopg2://stateset:hidden@127.0.0.1:{free_port()}/optuna"
    with pytest.raises(ConfigurationError, match="cannot be opened") as caught:
        open_storage(address)
    assert "hidden" not in str(caught.value)
