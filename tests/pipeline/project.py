"""A small project to run the line in: this checkout's code and steps, little data, a tiny model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from stateset_agents.data.splits import read_intents
from tasks import history

ROOT = Path(__file__).parents[2]
COPIED = (
    "components",
    "flows",
    "tasks",
    "pyproject.toml",
    "dvc.yaml",
    "prefect.yaml",
    ".dvcignore",
    ".gitignore",
)
INTENTS = {"train": 2, "validation": 1, "heldout": 2}
SCENARIOS_PER_INTENT = 2
PAIRS = {"train": 24, "heldout": 8}


def make_project(folder: Path, base_model: Path) -> Path:
    """Make it, with a git repository; nothing of the line has run."""
    folder.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    (folder / ".dvc").mkdir()
    (folder / "data").mkdir()
    for name in (".dvc/config", ".dvc/.gitignore", "data/.gitignore"):
        shutil.copy(ROOT / name, folder / name)
    _copy_data(folder / "data")
    text = yaml.safe_dump(make_params(base_model), sort_keys=False)
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "start"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def _copy_data(data: Path) -> None:
    entries = read_intents(ROOT / "data/scenarios/intents.yaml")
    chosen: list[str] = []
    for split, count in INTENTS.items():
        chosen += [name for name, entry in entries.items() if entry.split == split][:count]
    (data / "scenarios").mkdir(parents=True)
    (data / "preferences").mkdir()
    kept: dict[str, list[str]] = {name: [] for name in chosen}
    for path in sorted((ROOT / "data/scenarios").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            lines = kept.get(json.loads(line)["intent"], [])
            if len(lines) < SCENARIOS_PER_INTENT:
                lines.append(line)
    _write(data / "scenarios/all.jsonl", [line for lines in kept.values() for line in lines])
    intents = {
        name: {"topic": entries[name].topic, "split": entries[name].split} for name in chosen
    }
    (data / "scenarios/intents.yaml").write_text(yaml.safe_dump({"intents": intents}))
    for part, count in PAIRS.items():
        lines = (ROOT / f"data/preferences/{part}.jsonl").read_text(encoding="utf-8").splitlines()
        of_intents = [line for line in lines if json.loads(line)["intent"] in chosen]
        _write(data / f"preferences/{part}.jsonl", of_intents[:count])


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_params(base_model: Path) -> dict[str, Any]:
    """Every section of params.yaml, small enough for a test."""
    return {
        "base_model": {"source": str(base_model)},
        "scenarios": {
            "min_scenarios": 5,
            "min_intents": 3,
            "min_heldout_intents": 1,
            "min_preferences": 4,
            "min_heldout_preferences": 2,
            "chosen_longer_share": [0.0, 1.0],
        },
        "agent": {"max_new_tokens": 6, "temperature": 1.0},
        "rewards": {},
        "tune": {},
        "reward_model": {
            "num_epochs": 1,
            "trained_layers": 1,
            "min_heldout_accuracy": 0.0,
        },
        "train": {
            "num_episodes": 2,
            "num_generations": 2,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "max_prompt_length": 1500,
            "learning_rate": 1e-3,
            "use_lora": True,
            "lora_r": 2,
            "lora_alpha": 4,
            "save_steps": 1,
        },
        "evaluate": {"seeds": [1, 2], "scenarios_per_intent": 1, "bootstrap_samples": 200},
        "register": {},
        "promote": {},
        "tracking": {},
    }


def environment(project: Path, **more: str) -> dict[str, str]:
    """What a process in the project sees: its own code, its own Prefect home, one thread.

    It keeps bytecode, because the next process imports the same.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT_", "MLFLOW_", "STATESET_", "DVC_", "PYTHONDONTWRITE"))
    }
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([str(project), str(project / "components")]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
        **more,
    }


def run(project: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in the project, standard error after standard output."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env=environment(project, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def steps_run(project: Path, since: int = 0) -> list[str]:
    """Names of the steps that really ran, after the first `since` of them."""
    return [record.step for record in history.read(project)][since:]
