"""The step: all parts or none, a report either way, and a change touches only what it must."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from stateset_agents.exceptions import DataError
from stateset_agents.run_config import RunConfig
from tasks import validate_scenarios
from tests.infra.servers import object_store

# Great Expectations 1.24 on Python 3.11, and its pandas metrics
pytestmark = [
    pytest.mark.filterwarnings("ignore:module 'sre_\\w+' is deprecated:DeprecationWarning"),
]
ROOT = Path(__file__).parents[2]
PARTS = {"train", "validation", "heldout", "preferences_train", "preferences_heldout"}


@dataclass(frozen=True)
class Run:
    """A project in which the step has run, and what it logged."""

    folder: Path
    log: str


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run on the sources as they are, for every test that starts from there."""
    folder = tmp_path_factory.mktemp("project")
    copy_sources(folder)
    with io.StringIO() as log, contextlib.chdir(folder), logged_to(log):
        validate_scenarios.run(RunConfig())
        return Run(folder, log.getvalue())


@contextlib.contextmanager
def logged_to(stream: io.StringIO) -> Iterator[None]:
    """The step's records from information on, everybody else's as by default."""
    handler, everybody = logging.StreamHandler(stream), logging.getLogger()
    own = logging.getLogger("tasks.validate_scenarios")
    level = own.level
    everybody.addHandler(handler)
    own.setLevel(logging.INFO)
    try:
        yield
    finally:
        everybody.removeHandler(handler)
        own.setLevel(level)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sources, and nothing that the step wrote."""
    copy_sources(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def validated(tmp_path: Path, first_run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project in which the step has run."""
    shutil.copytree(first_run.folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def copy_sources(folder: Path) -> None:
    for name in ("scenarios", "preferences"):
        shutil.copytree(
            ROOT / "data" / name, folder / "data" / name, ignore=shutil.ignore_patterns("source")
        )


def parts(project: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (project / "data" / "validated").iterdir()}


def edit(path: Path, line: int, **changes: object) -> dict[str, object]:
    rows = path.read_text("utf-8").splitlines()
    row = {**json.loads(rows[line - 1]), **changes}
    rows[line - 1] = json.dumps(row)
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return row


def test_the_sources_become_five_parts_and_a_report(first_run: Run) -> None:
    project = first_run.folder
    written = parts(project)
    assert set(written) == PARTS
    assert {json.loads(line)["split"] for line in written["heldout"].splitlines()} == {"heldout"}
    report = project / "data" / "reports" / "data"
    summary = json.loads((report / "summary.json").read_text("utf-8"))
    assert summary["valid"] is True
    assert summary["scenarios_by_split"]["train"] == len(written["train"].splitlines())
    assert "Expectations" in (report / "index.html").read_text("utf-8")
    for table in ("scenarios", "preferences", "heldout_preferences"):
        assert (report / "expectations" / f"{table}.html").is_file()
        (verdict,) = (report / "validations" / table).rglob("*.html")
        assert "Succeeded" in verdict.read_text("utf-8")
    assert [path.name for path in (project / "data").iterdir() if path.name[0] == "."] == []


def test_a_changed_scenario_changes_the_part_of_its_split_alone(validated: Path) -> None:
    before = parts(validated)
    edit(validated / "data/scenarios/orders.jsonl", 1, metadata={"note": "another"})
    validate_scenarios.run(RunConfig())
    changed = {name for name, text in parts(validated).items() if text != before[name]}
    assert changed == {"train"}


def test_a_changed_pair_leaves_the_scenarios_as_they_were(validated: Path) -> None:
    before = parts(validated)
    answer = [{"role": "assistant", "content": "Could you tell me a little more about it?"}]
    edit(validated / "data/preferences/train.jsonl", 3, chosen=answer)
    validate_scenarios.run(RunConfig())
    assert {name for name, text in parts(validated).items() if text != before[name]} == {
        "preferences_train"
    }


def test_a_critical_expectation_names_the_rows_and_nothing_is_replaced(project: Path) -> None:
    validated = project / "data" / "validated"
    validated.mkdir()
    (validated / "train.jsonl").write_text("as it was\n", "utf-8")
    row = edit(
        project / "data/scenarios/billing.jsonl",
        2,
        user_responses=["One turn only, sorry."],
        rubric=None,
    )
    with pytest.raises(DataError) as caught:
        validate_scenarios.run(RunConfig())
    text = str(caught.value)
    assert f"data/scenarios/billing.jsonl:2: {row['id']}: turns is 1" in text
    assert f"data/scenarios/billing.jsonl:2: {row['id']}: has_rubric is False" in text
    assert "Report: data/reports/data/index.html" in text
    assert parts(project) == {"train": b"as it was\n"}
    report = json.loads((project / "data/reports/data/summary.json").read_text("utf-8"))
    assert report["valid"] is False


def test_too_few_rows_and_tell_tale_lengths_are_refused(project: Path) -> None:
    config = RunConfig()
    config.scenarios.min_heldout_intents = 99
    config.scenarios.chosen_longer_share = (0.9, 1.0)
    with pytest.raises(DataError) as caught:
        validate_scenarios.run(config)
    assert "at least 99 intents held out; found 11" in str(caught.value)
    assert "the chosen answer is the longer one in 90% to 100% of pairs; found 0.5" in str(
        caught.value
    )


def test_problems_of_all_sources_are_in_one_message(project: Path) -> None:
    with (project / "data/scenarios/orders.jsonl").open("a") as file:
        file.write('{"id": "broken"\n')
    edit(project / "data/preferences/heldout.jsonl", 1, rejected=[])
    edit(project / "data/scenarios/account.jsonl", 1, intent="unheard_of")
    with pytest.raises(DataError) as caught:
        validate_scenarios.run(RunConfig())
    text = str(caught.value)
    assert "data/scenarios/orders.jsonl:37: malformed JSON" in text
    assert "data/preferences/heldout.jsonl:1: key rejected" in text
    assert not (project / "data" / "validated").exists()


def test_the_step_says_in_one_line_what_it_read(first_run: Run) -> None:
    assert "342 scenarios over 57 intents (66 heldout, 240 train, 36 validation)" in first_run.log
    assert "ephemeral" not in first_run.log


def test_sources_on_s3_give_the_same_parts_as_files(
    project: Path, first_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_store(project) as store:
        for name, value in store.env.items():
            monkeypatch.setenv(name, value)
        for name in ("scenarios", "preferences"):
            shutil.copytree(project / "data" / name, project / "objects" / "bucket" / name)
        config = RunConfig()
        config.scenarios.sources = ("s3://bucket/scenarios",)
        config.scenarios.preferences = ("s3://bucket/preferences/train.jsonl",)
        validate_scenarios.run(config)
    assert parts(project) == parts(first_run.folder)
