import csv
import json
import shutil
from pathlib import Path

import pytest

from stateset_agents.exceptions import PipelineError
from stateset_agents.run_config import RunConfig
from stateset_agents.tracking.mlflow_run import open_client, read_link, start_run
from stateset_agents.tracking.registry import CHAMPION, register_version
from tasks import evaluate_policy, paths
from tests.evaluation.test_policies import make_adapter
from tests.tiny_model import make_tiny_model

REPORT = paths.EVALUATION_REPORT


def scenario(intent, number):
    return {
        "id": f"{intent}-{number}",
        "topic": "orders",
        "intent": intent,
        "split": "heldout",
        "context": "Ask for the order number.",
        "user_responses": [f"Where is parcel {number}?", "I do not know."],
        "rubric": {
            "items": [
                {"kind": "ask_for", "description": "asks for it", "any_of": [["order number"]]}
            ]
        },
    }


@pytest.fixture
def project(tiny_model_dir, tmp_path, monkeypatch):
    """A repository root with everything that the step reads; tracking on SQLite."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(tiny_model_dir, paths.BASE_MODEL)
    make_adapter(paths.BASE_MODEL, paths.POLICY)
    paths.VALIDATED.mkdir()
    rows = [scenario(intent, number) for intent in ("late", "lost") for number in range(3)]
    evaluate_policy.HELDOUT.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunConfig.model_validate(
        {
            "agent": {"max_new_tokens": 10, "torch_dtype": "float32", "temperature": 1.0},
            "rewards": {"weights": {"learned": 0.0}},
            "evaluate": {"seeds": [1, 2], "scenarios_per_intent": 2, "bootstrap_samples": 300},
            "tracking": {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"},
        }
    )


def read_metrics():
    return json.loads((REPORT / "metrics.json").read_text())


def promote_another_version(config, tmp_path):
    """Register the policy of a second adapter and put it in service."""
    make_adapter(paths.BASE_MODEL, tmp_path / "another", seed=2)
    with start_run(config.tracking, "register_model") as run:
        version = register_version(
            config.tracking, run, tmp_path / "another", base_model=paths.BASE_MODEL
        )
    name = config.tracking.registered_model
    open_client(config.tracking).set_registered_model_alias(name, CHAMPION, version.version)
    return version.version


def test_the_step_compares_with_the_base_until_there_is_a_champion_and_then_with_it(
    project, tmp_path, capsys
):
    evaluate_policy.run(project)
    first = read_metrics()
    assert first["champion.version"] == "base"
    assert first["conversations"] == 8  # 2 intents x 2 scenarios x 2 seeds
    assert first["reward.champion"] == first["reward.base"]
    assert first["log_likelihood.challenger"] != first["log_likelihood.base"]
    rows = [json.loads(line) for line in (REPORT / "conversations.jsonl").read_text().splitlines()]
    assert [row["policy"] for row in rows] == ["base"] * 8 + ["challenger"] * 8
    with (REPORT / "reward_distribution.csv").open() as file:
        assert sum(float(row["challenger"]) for row in csv.DictReader(file)) == 1.0
    assert "stands in for the champion" in (REPORT / "report.html").read_text()
    run = open_client(project.tracking).get_run(read_link(REPORT / "mlflow_run.json"))
    assert run.info.status == "FINISHED"
    assert run.data.metrics["reward.challenger"] == pytest.approx(first["reward.challenger"])
    assert "challenger - base" in capsys.readouterr().out

    version = promote_another_version(project, tmp_path)
    evaluate_policy.run(project)
    second = read_metrics()
    assert second["champion.version"] == version == "1"
    assert second["champion.model_name"] == project.tracking.registered_model
    for unchanged in ("answer_tokens.base", "log_likelihood.base", "log_likelihood.challenger"):
        assert second[unchanged] == first[unchanged]
    assert second["log_likelihood.champion"] != second["log_likelihood.base"]
    assert list(paths.STATE.iterdir()) == []  # the champion's copy is gone
    assert sorted(path.name for path in REPORT.iterdir()) == [
        "by_intent.json", "comparison.json", "conversations.jsonl", "metrics.json",
        "mlflow_run.json", "report.html", "reward_distribution.csv",
    ]  # fmt: skip


def test_a_champion_of_another_family_speaks_in_its_own_tokens_with_its_own_settings(
    project, tmp_path
):
    other = make_tiny_model(tmp_path / "other", seed=4, vocab_size=400)
    with start_run(project.tracking, "register_model") as run:
        version = register_version(
            project.tracking, run, other, generation={"max_new_tokens": 3, "temperature": 1.0}
        )
    name = project.tracking.registered_model
    open_client(project.tracking).set_registered_model_alias(name, CHAMPION, version.version)
    assert project.agent.max_new_tokens == 10

    evaluate_policy.run(project)
    found = read_metrics()
    assert found["champion.version"] == "1"
    assert found["answer_tokens.champion"] <= 3 < found["answer_tokens.base"]
    # its token ids are other words to the base model, or none at all
    assert "log_likelihood.champion" not in found
    assert found["fluency.in_band"] in (0, 1)
    assert "log_likelihood.challenger" in found


def test_missing_inputs_are_named_all_at_once_with_the_steps_that_make_them(project):
    shutil.rmtree(paths.POLICY)
    evaluate_policy.HELDOUT.unlink()
    project.rewards.weights.learned = 0.2
    with pytest.raises(PipelineError) as raised:
        evaluate_policy.run(project)
    assert "data/reward_model is missing; run the step train_reward_model" in str(raised.value)
    assert "data/validated/heldout.jsonl is missing; run the step validate_scenarios" in str(
        raised.value
    )
    assert "data/policy is missing; run the step train_policy" in str(raised.value)
    assert not Path(REPORT).exists()
