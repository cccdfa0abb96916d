"""`stateset-agents lineage` leads from what a person has of an answer to the data behind it."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest

from stateset_agents import cli
from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.lineage import collect_lineage
from stateset_agents.tracking.mlflow_run import open_client, start_run
from stateset_agents.tracking.promotion import set_champion

WEIGHTS = "0123456789ab" + "c" * 52
ANSWER = {"model": "support-agent/1", "system_fingerprint": "support-agent-1-0123456789ab"}
ROW = {"id": "late_01", "topic": "delivery", "intent": "late", "user_responses": ["Where is it?"]}
SCENARIOS = Path("data/train.jsonl")


@pytest.fixture
def folder(
    tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TrackingConfig:
    """A project that has registered version 1, trained on one scenario."""
    root = tmp_path / "project"
    (root / "data").mkdir(parents=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setenv("STATESET_GIT_REVISION", "abc123")
    SCENARIOS.write_text(json.dumps(ROW) + "\n")
    md5 = hashlib.md5(SCENARIOS.read_bytes(), usedforsecurity=False).hexdigest()
    Path("dvc.lock").write_text(
        f"stages: {{validate: {{outs: [{{path: {SCENARIOS}, md5: {md5}}}]}}}}"
    )
    cached = Path(".dvc/cache/files/md5") / md5[:2] / md5[2:]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(SCENARIOS.read_bytes())
    origins = collect_lineage({"scenarios": SCENARIOS})
    with start_run(tracking, "train_policy", origins, params={"seed": 5}) as run:
        pass
    client = open_client(tracking)
    client.create_registered_model("support-agent")
    tags = {**origins, "weights.sha256": WEIGHTS, "run.train": run.run_id}
    client.create_model_version(
        "support-agent", source="s3://nowhere/model", run_id=run.run_id, tags=tags
    )
    Path("params.yaml").write_text(json.dumps({"tracking": tracking.model_dump()}))
    return tracking


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("of", ["answer.json", "-", "support-agent/1", "models:/support-agent/1"])
def test_an_answer_leads_to_run_code_data_and_scenarios(
    of: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("answer.json").write_text(json.dumps(ANSWER))
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(ANSWER)))
    assert cli.main(["lineage", of, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["version"], found["weights_sha256"]) == (
        "support-agent",
        "1",
        WEIGHTS,
    )
    assert found["code"] == {"revision": "abc123", "dirty": "false"}
    assert found["runs"]["train"]["params"] == {"seed": "5"}
    scenarios = found["data"]["scenarios"]
    assert scenarios["sha256"] == hashlib.sha256(SCENARIOS.read_bytes()).hexdigest()
    assert (scenarios["here"], scenarios["ids"]) == (str(SCENARIOS), ["late_01"])
    assert scenarios["intents"] == {"late": 1}


def test_data_that_changed_since_is_found_as_it_was(
    folder: TrackingConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    SCENARIOS.write_text(json.dumps({**ROW, "id": "late_02"}) + "\n")
    assert cli.main(["lineage", "support-agent/1", "--json"]) == 0
    scenarios = json.loads(capsys.readouterr().out)["data"]["scenarios"]
    assert scenarios["here"].startswith(".dvc/cache/files/md5/")
    assert scenarios["ids"] == ["late_01"]

    Path(scenarios["here"]).unlink()
    set_champion(folder, "1", "the only one")
    assert cli.main(["lineage"]) == 0  # the version in service
    shown = capsys.readouterr().out
    assert "version    support-agent/1 (champion)" in shown
    assert "set none -> 1, by" in shown
    assert "code       abc123\n" in shown
    assert f"(changed or gone here; DVC keeps it as {scenarios['here'][11:]}" in shown


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({**ANSWER, "system_fingerprint": "support-agent-1-ffffffffffff"}, "is of another regist"),
        ({**ANSWER, "system_fingerprint": "support-agent-2-0123456789ab"}, "allowed is support-ag"),
        ({"model": "gpt-4o"}, "model 'gpt-4o' is no NAME/VERSION of a registry"),
        (
            {
                "model": "final/123456789012",
                "system_fingerprint": "final-123456789012-123456789012",
            },
            "one that serves a folder (--checkpoint)",
        ),
        ({"model": "support-agent/7"}, "support-agent/7: no such version"),
        ([ANSWER], "no answer of a chat server"),
        ({"choices": []}, "allowed is its JSON as it came, with the key `model`"),
    ],
)
def test_what_leads_nowhere_is_one_clear_message(
    given: object, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("answer.json").write_text(json.dumps(given))
    assert cli.main(["lineage", "answer.json"]) == 1
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.out == ""


@pytest.mark.usefixtures("folder")
def test_before_anything_is_in_service_there_is_no_way_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["lineage"]) == 1
    assert "support-agent@champion: no such version" in capsys.readouterr().err
