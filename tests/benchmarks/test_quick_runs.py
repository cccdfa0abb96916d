"""Every benchmark in its quick form, on a model that was written on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS, main
from tests.tiny_model import make_tiny_model

# These start a dozen processes that import torch, or TRL.
SLOW = {"trl", "memory", "limits", "rollout", "scaling", "algorithms"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in BENCHMARKS],
)
def test_a_quick_run_measures_or_says_why_not(name: str, model: Path, tmp_path: Path) -> None:
    main(["--quick", "--only", name, "--model", str(model), "--results", str(tmp_path)])
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert result["quick"]
    assert result["cases"]
    for case in result["cases"]:
        left_out = {"vllm"} if name == "rollout" else set()
        left_out |= {"ours", "trl"} if name == "accelerator" else set()
        assert set(case["skipped"]) == left_out, case["skipped"]
        assert case["samples"] or left_out
        for side, ratios in case["ratios"].items():
            for quantity, ratio in ratios.items():
                theirs, ours = (case["medians"][one][quantity] for one in (side, "ours"))
                assert ratio == pytest.approx(theirs / ours)
    assert name in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_the_step_that_is_timed_computes_the_loss_that_trl_computes(
    model: Path, tmp_path: Path
) -> None:
    main(["--quick", "--only", "trl", "--model", str(model), "--results", str(tmp_path)])
    for case in json.loads((tmp_path / "trl.json").read_text())["cases"]:
        checks = case["checks"]
        assert checks["loss"] == pytest.approx(checks["trl_loss"], abs=1e-5), case["name"]
        assert checks["gradient_difference"] < 1e-4, case["name"]


def test_a_missing_model_is_named_with_what_makes_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--model", str(tmp_path / "nothing")])
    assert "tasks.fetch_base_model" in capsys.readouterr().err
