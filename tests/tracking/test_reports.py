"""Reports: read back from what wandb (offline), MLflow and TensorBoard themselves have written."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stateset_agents.exceptions import ConfigurationError, RegistryError
from stateset_agents.tracking.reports import ReportPlan, check_installed, open_reports


@pytest.fixture
def fresh_wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """wandb reads its variables once in a process; before and after, it is made to forget them."""
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()
    yield
    wandb.teardown()


PARAMS = {"train": {"learning_rate": 1e-3}, "agent": {"temperature": 0.5}}


def test_tensorboard_has_every_number_at_its_step_and_the_settings(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_reports(ReportPlan(["tensorboard"], tmp_path, "mine", params=PARAMS)) as logger:
        logger.log(1, {"reward/mean": 0.25, "policy/loss": math.nan})
        logger.log(3, {"reward/mean": 0.5})

    events = EventAccumulator(str(tmp_path / "mine")).Reload()
    assert [(one.step, one.value) for one in events.Scalars("reward/mean")] == [(1, 0.25), (3, 0.5)]
    assert math.isnan(events.Scalars("policy/loss")[0].value)
    text = events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "|train.learning_rate|0.001|" in text


def test_mlflow_has_a_run_of_that_name_that_ends_as_the_block_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("STATESET_ARTIFACT_LOCATION", str(tmp_path / "artifacts"))
    plan = ReportPlan(["mlflow"], tmp_path, "mine", params=PARAMS)

    with open_reports(plan) as logger:
        logger.log(2, {"reward/mean": 0.25})
    with pytest.raises(RuntimeError), open_reports(plan) as logger:
        raise RuntimeError("training failed")

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("stateset-agents")
    assert experiment is not None
    failed, ended = client.search_runs([experiment.experiment_id])
    assert (ended.info.status, failed.info.status) == ("FINISHED", "FAILED")
    assert ended.info.run_name == "mine"
    assert ended.data.params["agent.temperature"] == "0.5"
    (metric,) = client.get_metric_history(ended.info.run_id, "reward/mean")
    assert (metric.step, metric.value) == (2, 0.25)


@pytest.mark.usefixtures("fresh_wandb")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_wandb_offline_keeps_the_run_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    plan = ReportPlan(["wandb"], tmp_path, "mine", project="my-agent-training", params=PARAMS)

    with open_reports(plan) as logger:
        logger.log(1, {"reward/mean": 0.25})
        logger.log(2, {"reward/mean": 0.5})

    import wandb

    wandb.teardown()  # as when the process ends: until then its service may hold what it was told
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    kept = file.read_bytes()
    for part in (b"my-agent-training", b"mine", b"reward/mean", b"0.25", b"learning_rate"):
        assert part in kept


@pytest.mark.usefixtures("fresh_wandb")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_wandb_without_a_login_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("WANDB_MODE", "online"),
        ("WANDB_BASE_URL", "http://127.0.0.1:9"),
        ("WANDB_API_KEY", "too-short"),
        ("HOME", str(tmp_path)),
    ):
        monkeypatch.setenv(name, value)

    with (
        pytest.raises(RegistryError, match="WANDB_MODE=offline"),
        open_reports(ReportPlan(["wandb"], tmp_path)),
    ):
        pass


def test_no_report_at_all_logs_nowhere(tmp_path: Path) -> None:
    with open_reports(ReportPlan([], tmp_path / "none")) as logger:
        logger.log(1, {"reward/mean": 0.25})

    assert not (tmp_path / "none").exists()


def test_packages_that_are_not_installed_are_named_together_with_their_extras(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("wandb", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(ConfigurationError) as caught:
        check_installed(["wandb", "mlflow", "tensorboard"])

    assert len(caught.value.problems) == 2
    assert 'pip install "stateset-agents[wandb]"' in str(caught.value)
    assert 'pip install "stateset-agents[tensorboard]"' in str(caught.value)


def test_reports_leave_the_programs_own_logging_as_it_was(tmp_path: Path) -> None:
    level = logging.getLogger().level

    with open_reports(ReportPlan(["tensorboard"], tmp_path)):
        pass

    assert logging.getLogger().level == level
