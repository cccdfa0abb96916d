"""The step: all parts or none, a report either way, and a change touches only what it must."""

from __future__ import annotations

import json
import logging
import shutil
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


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("scenarios", "preferences"):
        shutil.copytree(
            ROOT / "data" / name, tmp_path / "data" / name, ignore=shutil.ignore_patterns("source")
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parts(project: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (project / "data" / "validated").iterdir()}


def edit(path: Path, line: int, **changes: object) -> dict[str, object]:
    rows = path.read_text("utf-8").splitlines()
    row = {**json.loads(rows[line - 1]), **changes}
    rows[line - 1] = json.dumps(row)
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return row


def test_the_sources_become_five_parts_and_a_report(project: Path) -> None:
    validate_scenarios.run(RunConfig())
    written = parts(project)
    assert set(written) == PARTS
    assert {json.loads(line)["split"] for line in written["heldout"].splitlines()} == {"heldout"}
    report = project / "data" / "reports" / "data"
    summary = json.loads((report / "summary.json").read_text("utf-8"))
    assert summary["valid"] is True
    assert summary["scenarios_by_split"]["train"] == len(written["train"].splitlines())
    assert "Expectations" in (report / "index.html").read_text("utf-8")
    assert [path.name for path in (project / "data").iterdir() if path.name[0] == "."] == []

    edit(project / "data/scenarios/orders.jsonl", 1, metadata={"note": "another"})
    validate_scenarios.run(RunConfig())
    changed = {name for name, text in parts(project).items() if text != written[name]}
    assert changed == {"train"}


def test_a_changed_pair_leaves_the_scenarios_as_they_were(project: Path) -> None:
    validate_scenarios.run(RunConfig())
    before = parts(project)
    answer = [{"role": "assistant", "content": "Could you tell me a little more about it?"}]
    edit(project / "data/preferences/train.jsonl", 3, chosen=answer)
    validate_scenarios.run(RunConfig())
    assert {name for name, text in parts(project).items() if text != before[name]} == {
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


def test_the_step_says_in_one_line_what_it_read(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="tasks.validate_scenarios"):
        validate_scenarios.run(RunConfig())
    assert "ephemeral" not in caplog.text
    assert "342 scenarios over 57 intents (66 heldout, 240 train, 36 validation)" in caplog.text


def test_sources_on_s3_give_the_same_parts_as_files(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate_scenarios.run(RunConfig())
    from_files = parts(project)
    with object_store(project) as store:
        for name, value in store.env.items():
            monkeypatch.setenv(name, value)
        for name in ("scenarios", "preferences"):
            shutil.copytree(project / "data" / name, project / "objects" / "bucket" / name)
        config = RunConfig()
        config.scenarios.sources = ("s3://bucket/scenarios",)
        config.scenarios.preferences = ("s3://bucket/preferences/train.jsonl",)
        validate_scenarios.run(config)
    assert parts(project) == from_files
