"""The step `train_policy`, with a real tracking store, on the tiny model."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from stateset_agents.exceptions import PipelineError
from stateset_agents.run_config import RunConfig
from stateset_agents.tracking.mlflow_run import RUN_LINK, read_link
from stateset_agents.training.algorithms import ALGORITHMS
from stateset_agents.training.callbacks import TrainingCallback
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.trainer import Trainer
from tasks import paths, train_policy

SCENARIO: dict[str, Any] = {
    "topic": "orders",
    "split": "train",
    "user_responses": ["Where is my order?", "It is 4711.", "Thank you."],
    "context": "Ask for the order number.",
}


@pytest.fixture
def config(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Settings of a small run; the working directory holds its inputs."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model_dir, paths.BASE_MODEL)
    paths.VALIDATED.mkdir(parents=True)
    rows = [{**SCENARIO, "id": f"order-{n}", "intent": f"intent-{n}"} for n in range(4)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    train_policy.SCENARIOS.write_text(lines, encoding="utf-8")
    settings = {
        "agent": {"max_new_tokens": 8, "temperature": 1.0, "torch_dtype": "float32"},
        "rewards": {
            "weights": {"rubric": 0, "helpfulness": 1, "conciseness": 1, "learned": 0},
            "gates": {"safety": 1, "repetition": 0, "fluency": 0},
        },
        "train": {
            "num_episodes": 4,
            "num_generations": 4,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1e-2,
            "use_lora": True,
            "bf16": False,
            "save_steps": 1,
            "logging_steps": 1,
            "importance_sampling_cap": None,
        },
    }
    return RunConfig.model_validate(settings)


def adapter_bytes() -> bytes:
    return (paths.POLICY / "adapter_model.safetensors").read_bytes()


def test_the_step_trains_reports_and_leaves_no_checkpoint(config: RunConfig) -> None:
    train_policy.run(config)

    assert (paths.POLICY / "tokenizer.json").is_file()
    described = json.loads((paths.POLICY / "policy.json").read_text())
    assert described["algorithm"] == "grpo"
    assert described["steps"] == 4
    metrics = json.loads((paths.POLICY_REPORT / "metrics.json").read_text())
    assert metrics["steps"] == 4
    with (paths.POLICY_REPORT / "steps.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [1, 2, 3, 4]
    conversations = (paths.POLICY_REPORT / "conversations.md").read_text()
    assert all(f"## Step {step}\n" in conversations for step in (1, 2, 4))
    assert "> Where is my order?" in conversations
    assert not train_policy.STATE.exists()

    run_id = read_link(paths.POLICY_REPORT / RUN_LINK)
    assert run_id == described["mlflow_run_id"]
    client = MlflowClient(tracking_uri=config.tracking.effective_uri)
    history = client.get_metric_history(run_id, "reward/mean")
    assert [point.step for point in history] == [1, 2, 3, 4]
    kept = [item.path for item in client.list_artifacts(run_id, "policy_report")]
    assert "policy_report/conversations.md" in kept


def test_totals_are_of_every_step_though_only_some_are_logged(config: RunConfig) -> None:
    config.train.logging_steps = 2

    train_policy.run(config)

    metrics = json.loads((paths.POLICY_REPORT / "metrics.json").read_text())
    with (paths.POLICY_REPORT / "steps.csv").open(newline="") as file:
        logged = list(csv.DictReader(file))
    assert [int(row["step"]) for row in logged] == [2, 4]
    assert metrics["steps"] == 4
    assert metrics["seconds/step"] > sum(float(row["seconds/step"]) for row in logged)


# More than a loss of its own; the others differ from `grpo` in a loss or in settings alone.
KINDS = {"ppo", "a2c", "trpo", "dpo"}


@pytest.mark.parametrize(
    "algorithm",
    [pytest.param(name, marks=[] if name in KINDS else [pytest.mark.slow]) for name in ALGORITHMS],
)
def test_the_step_runs_with_every_algorithm_of_the_table(config: RunConfig, algorithm: Any) -> None:
    config.train = TrainingConfig(
        **{
            **config.train.model_dump(exclude_unset=True, exclude={"importance_sampling_cap"}),
            "algorithm": algorithm,
            "num_episodes": 1,
        }
    )

    train_policy.run(config)

    described = json.loads((paths.POLICY / "policy.json").read_text())
    assert (described["algorithm"], described["steps"]) == (algorithm, 1)
    assert (paths.POLICY / "adapter_model.safetensors").is_file()


class Interrupt(TrainingCallback):
    """A person presses Ctrl-C when the checkpoint of step 2 has been written."""

    runs_last = True

    async def on_step_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        if trainer.step == 2:
            raise KeyboardInterrupt


def test_a_step_that_was_cut_off_goes_on_in_the_same_tracking_run(config: RunConfig) -> None:
    train_policy.run(config)
    whole = adapter_bytes()
    shutil.rmtree(paths.POLICY)

    with pytest.raises(KeyboardInterrupt):
        train_policy.run(config, [Interrupt()])
    cut_off = read_link(train_policy.STATE / RUN_LINK)
    assert not paths.POLICY.exists()
    train_policy.run(config)

    assert adapter_bytes() == whole
    assert read_link(paths.POLICY_REPORT / RUN_LINK) == cut_off
    client = MlflowClient(tracking_uri=config.tracking.effective_uri)
    history = client.get_metric_history(cut_off, "reward/mean")
    assert [point.step for point in history] == [1, 2, 3, 4]


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(config: RunConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_policy.run(config, [Interrupt()])
    config.train.num_generations = 3

    train_policy.run(config)

    with (paths.POLICY_REPORT / "steps.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [1, 2, 3, 4]


def test_missing_inputs_are_named_with_the_step_that_makes_them(
    config: RunConfig,
) -> None:
    train_policy.SCENARIOS.unlink()
    shutil.rmtree(paths.BASE_MODEL)

    with pytest.raises(PipelineError) as caught:
        train_policy.run(config)

    assert "run the step validate_scenarios" in str(caught.value)
    assert "run the step fetch_base_model" in str(caught.value)
