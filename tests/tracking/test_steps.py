"""The steps and the flow around the registry, in a project folder with a tiny policy."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import promote as promote_flow
from stateset_agents.exceptions import PipelineError
from stateset_agents.run_config import RunConfig
from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.lineage import fingerprint
from stateset_agents.tracking.mlflow_run import open_client, start_run
from stateset_agents.tracking.registry import (
    alias_version,
    champion_version,
    describe_lineage,
    find_version,
)
from tasks import fetch_base_model, paths, promote_model, register_model
from tests.tracking.test_promotion import GOOD


@pytest.fixture
def project(
    tracking: TrackingConfig, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RunConfig:
    """A folder in which training and evaluation have just ended."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    Path("dvc.yaml").write_text("stages: {}\n")
    Path("params.yaml").write_text(
        json.dumps({"tracking": tracking.model_dump()})  # JSON is YAML
    )
    paths.POLICY.parent.mkdir()
    shutil.copytree(tiny_model_dir, paths.POLICY)
    paths.EVALUATION_REPORT.mkdir(parents=True)
    figures = {**GOOD, "policy.sha256": fingerprint(paths.POLICY)}
    (paths.EVALUATION_REPORT / "metrics.json").write_text(json.dumps(figures))
    (paths.EVALUATION_REPORT / "report.html").write_text("<p>")
    origins = {"git.revision": "abc", "data.scenarios.sha256": "as trained on"}
    with start_run(tracking, "train_policy", origins, params={"seed": 5}) as run:
        run.write_link(paths.POLICY_REPORT / "mlflow_run.json")
    return RunConfig(tracking=tracking)


def test_a_base_model_is_fetched_to_where_the_other_steps_read_it(
    project: RunConfig, tiny_model_dir: Path
) -> None:
    project.base_model.source = str(tiny_model_dir)
    fetch_base_model.run(project)
    assert (paths.BASE_MODEL / "config.json").is_file()


def test_a_policy_is_registered_promoted_and_refused_the_second_time(
    project: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PipelineError, match=r"registration\.json is missing: run the step"):
        promote_model.run(project)
    whole = register_model.FIGURES.read_text()
    register_model.FIGURES.write_text(whole[:40])
    with pytest.raises(PipelineError, match=r"metrics\.json is damaged .* evaluate_policy writes"):
        register_model.run(project)
    register_model.FIGURES.write_text(whole)
    register_model.run(project)
    registration = json.loads(paths.REGISTRATION.read_text())
    assert registration["model_uri"] == "models:/support-agent/1"
    tags = find_version(project.tracking, registration["model_uri"]).tags
    assert tags["data.policy.sha256"] == fingerprint(paths.POLICY)
    assert tags["data.scenarios.sha256"] == "as trained on"
    assert tags["git.revision"] == "abc"
    assert tags["evaluation.reward.challenger"] == "0.7"

    promote_model.run(project)
    promotion = json.loads(paths.PROMOTION.read_text())
    assert (promotion["promoted"], promotion["champion"], promotion["previous"]) == (
        True,
        "1",
        None,
    )
    assert champion_version(project.tracking) == "1"
    assert "version 1 promoted" in capsys.readouterr().out
    promote_model.run(project)  # as a forced run of the step does
    assert len(promotion["gates"]) == 10
    assert [one["passed"] for one in json.loads(paths.PROMOTION.read_text())["gates"]] == [
        one["passed"] for one in promotion["gates"]
    ]

    # figures that came after the registration are another policy's
    figures = paths.EVALUATION_REPORT / "metrics.json"
    as_they_were = figures.read_text()
    figures.write_text(json.dumps({**json.loads(as_they_were), "reward.challenger": 0.8}))
    with pytest.raises(PipelineError, match="is not the evaluation of version 1, which"):
        promote_model.run(project)
    figures.write_text(as_they_were)

    # the same figures of another policy: measured against the base model, not against version 1
    _train_again()
    register_model.run(project)
    promote_model.run(project)
    promotion = json.loads(paths.PROMOTION.read_text())
    assert (promotion["promoted"], promotion["version"], promotion["champion"]) == (
        False,
        "2",
        "1",
    )
    assert "and the champion is 1 now: evaluate again" in promotion["reasons"][0]
    assert champion_version(project.tracking) == "1"


def _train_again() -> None:
    """Another policy, as far as its folder tells, with the same figures."""
    (paths.POLICY / "policy.json").write_text(f'{{"run": {time.monotonic_ns()}}}')
    figures = json.loads(register_model.FIGURES.read_text())
    figures |= {"policy.sha256": fingerprint(paths.POLICY)}
    register_model.FIGURES.write_text(json.dumps(figures))


def test_a_policy_that_is_registered_again_is_the_version_that_it_was(project: RunConfig) -> None:
    client = open_client(project.tracking)

    def versions() -> list[str]:
        found = client.search_model_versions("name = 'support-agent'")
        return sorted(str(one.version) for one in found)

    register_model.run(project)
    first = json.loads(paths.REGISTRATION.read_text())
    figures = json.loads(register_model.FIGURES.read_text())
    ends = {"reward.base": 0.6, "reward.vs_base.low": 0.05, "reward.vs_base.high": 0.15}
    register_model.FIGURES.write_text(json.dumps(figures | {"reward.challenger": 0.75} | ends))
    register_model.run(project)
    again = json.loads(paths.REGISTRATION.read_text())
    assert versions() == ["1"]
    assert again["evaluation_sha256"] != first["evaluation_sha256"]
    assert {**again, "evaluation_sha256": ""} == {**first, "evaluation_sha256": ""}
    found = client.get_model_version("support-agent", "1")
    assert found.tags["evaluation.reward.challenger"] == "0.75"  # of the newest evaluation
    assert found.description == (
        "Held-out reward 0.750; base model 0.600; 90% interval of the difference +0.050 to +0.150."
    )

    # the same policy that speaks otherwise in service is another version
    project.agent.temperature = 0.1
    register_model.run(project)
    assert versions() == ["1", "2"]
    assert alias_version(client, "support-agent", "challenger") == "2"
    project.agent.temperature = RunConfig().agent.temperature
    register_model.run(project)
    assert alias_version(client, "support-agent", "challenger") == "1"
    # one whose run was deleted is made anew
    client.delete_run(json.loads(paths.REGISTRATION.read_text())["run_id"])
    register_model.run(project)
    assert versions() == ["1", "2", "3"]


def test_a_policy_that_was_trained_again_is_not_registered_on_the_old_ones_figures(
    project: RunConfig,
) -> None:
    settings = paths.POLICY / "generation_settings.json"
    settings.write_text('{"temperature": 0.1}')
    with pytest.raises(PipelineError, match=r"which was trained again since: run the step eval"):
        register_model.run(project)
    assert not paths.REGISTRATION.exists()


@pytest.fixture
def prefect_server() -> Iterator[None]:
    """Prefect with a database of this test's own, quiet."""
    from prefect.settings import PREFECT_LOGGING_LEVEL, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with (
        temporary_settings({PREFECT_LOGGING_LEVEL: "CRITICAL"}),
        prefect_test_harness(server_startup_timeout=120),
    ):
        yield


@pytest.mark.usefixtures("prefect_server")
def test_a_person_promotes_rolls_back_and_reads_the_history(
    project: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    register_model.run(project)
    _train_again()
    register_model.run(project)
    promote_model.run(project)
    assert champion_version(project.tracking) == "2"

    assert promote_flow.main(["--version", "1", "--reason", "the old one was kinder"]) == 0
    assert champion_version(project.tracking) == "1"
    assert promote_flow.main(["--rollback"]) == 0
    assert champion_version(project.tracking) == "2"
    capsys.readouterr()

    assert promote_flow.main(["--rollback"]) == 1
    assert "has no earlier champion to go back to (now: 2)" in capsys.readouterr().err

    assert promote_flow.main(["--history"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["promote: none -> 2" in lines[0], "set: 2 -> 1" in lines[1]] == [True, True]
    assert "rollback: 1 -> 2" in lines[2]
    assert "the old one was kinder" in lines[1]

    lineage = describe_lineage(project.tracking, "models:/support-agent@champion")
    assert (lineage["version"], lineage["runs"]["train"]["params"]) == ("2", {"seed": "5"})
