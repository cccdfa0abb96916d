"""Other backends carry out the same trials; what is chosen and what comes of it is the study's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.hpo import HPOSummary
from tests.training.hpo.made import search


def _comes_to(summary: HPOSummary) -> list[tuple[Any, ...]]:
    return [(one.number, one.params, one.values, one.steps) for one in summary.trials]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, of other libraries' versions
def test_ray_tune_comes_to_what_optuna_does(tiny_model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.tune", reason="the extra `ray` is not installed")
    settings = {"n_trials": 3, "sampler": "random", "confirm_top": 1, "confirm_seeds": 1}
    alone = search(tiny_model_dir, tmp_path / "optuna", **settings)
    by_ray = search(tiny_model_dir, tmp_path / "ray", backend="ray_tune", n_workers=2, **settings)
    assert by_ray.backend == "ray_tune"
    assert _comes_to(by_ray) == _comes_to(alone)
    assert by_ray.confirmations == alone.confirmations


def test_wandb_has_an_offline_run_for_each_trial(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    alone = search(tiny_model_dir, tmp_path)
    by_wandb = search(tiny_model_dir, tmp_path, backend="wandb")
    assert _comes_to(by_wandb) == _comes_to(alone)
    runs = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(runs) == 2
    for run, trial in zip(runs, by_wandb.trials, strict=True):
        assert json.dumps(trial.params["learning_rate"])[:8].encode() in run.read_bytes()


@pytest.mark.parametrize(("backend", "module"), [("ray_tune", "ray"), ("wandb", "wandb")])
def test_a_backend_that_is_not_installed_says_how_to_have_it(
    tiny_model_dir: Path, tmp_path: Path, backend: str, module: str
) -> None:
    import importlib.util

    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    with pytest.raises(ConfigurationError, match=rf"pip install 'stateset-agents\[{module}\]'"):
        search(tiny_model_dir, tmp_path, backend=backend)
    assert not (tmp_path / "hpo.journal").exists()
