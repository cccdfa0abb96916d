import json
import shutil
from pathlib import Path

import pytest

from stateset_agents.exceptions import PipelineError, TrainingError
from stateset_agents.rewards.learned import LearnedReward
from stateset_agents.run_config import RunConfig
from stateset_agents.tracking.mlflow_run import RUN_LINK, open_client, read_link
from tasks import paths, train_reward_model
from tests.rewards.test_reward_model import CONFIG, HELDOUT, PAIRS

REPORT = paths.REWARD_MODEL_REPORT


@pytest.fixture
def config(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A repository root with everything that the step reads; tracking on SQLite."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(tiny_model_dir, paths.BASE_MODEL)
    paths.VALIDATED.mkdir()
    for path, pairs in ((train_reward_model.TRAIN, PAIRS), (train_reward_model.HELDOUT, HELDOUT)):
        path.write_text("".join(pair.model_dump_json() + "\n" for pair in pairs))
    return RunConfig.model_validate(
        {
            "reward_model": CONFIG.model_dump(),
            "tracking": {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"},
        }
    )


def test_the_step_leaves_a_model_a_report_and_a_run_or_nothing(config: RunConfig) -> None:
    # a floor that cannot be reached: swapped pairs are all ranked wrongly
    swapped = [p.model_copy(update={"chosen": p.rejected, "rejected": p.chosen}) for p in HELDOUT]
    good = train_reward_model.HELDOUT.read_text()
    train_reward_model.HELDOUT.write_text("".join(p.model_dump_json() + "\n" for p in swapped))
    with pytest.raises(TrainingError, match=r"ranks 0\.000 of 10 held-out pairs .* is 0\.7 "):
        train_reward_model.run(config)
    assert not paths.REWARD_MODEL.exists()
    assert not REPORT.exists()

    train_reward_model.HELDOUT.write_text(good)
    train_reward_model.run(config)
    LearnedReward.load(paths.REWARD_MODEL)
    metrics = json.loads((REPORT / "metrics.json").read_text())
    assert metrics["heldout_accuracy"] == 1.0
    bins = json.loads((REPORT / "calibration.json").read_text())
    assert sum(one["pairs"] for one in bins) == len(HELDOUT)
    assert (REPORT / "calibration.png").read_bytes().startswith(b"\x89PNG")
    curve = json.loads((REPORT / "training_curve.json").read_text())
    run_id = read_link(REPORT / RUN_LINK)
    assert run_id is not None
    client = open_client(config.tracking)
    logged = client.get_run(run_id).data.metrics
    assert logged["heldout_accuracy"] == 1.0
    assert len(client.get_metric_history(run_id, "train.loss")) == len(curve)

    # a later failure leaves the good model as it was
    before = (paths.REWARD_MODEL / "head.safetensors").stat().st_mtime_ns
    train_reward_model.HELDOUT.write_text("".join(p.model_dump_json() + "\n" for p in swapped))
    with pytest.raises(TrainingError):
        train_reward_model.run(config)
    assert (paths.REWARD_MODEL / "head.safetensors").stat().st_mtime_ns == before
    assert not list(Path("data").glob(".reward_model*"))


def test_every_missing_input_is_named_with_the_step_that_makes_it(config: RunConfig) -> None:
    train_reward_model.TRAIN.unlink()
    shutil.rmtree(paths.BASE_MODEL)
    with pytest.raises(PipelineError) as caught:
        train_reward_model.run(config)
    assert str(caught.value).splitlines() == [
        f"{train_reward_model.TRAIN} is missing; run the step validate_scenarios",
        f"{paths.BASE_MODEL} is missing; run the step fetch_base_model",
    ]
