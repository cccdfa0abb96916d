"""Checkpoints are whole or absent, and belong to one run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stateset_agents.exceptions import CheckpointError
from stateset_agents.training.callbacks import CheckpointCallback
from stateset_agents.training.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from tests.training.runs import make_trainer, train

FINGERPRINT = {"scenarios": "a", "base model": "b"}


def checkpoint_of(step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        fingerprint=FINGERPRINT,
        weights={"w": torch.tensor([0.0, 1, 2]) + step},
        optimizer={"w.exp_avg": torch.ones(3)},
        state={"best": [0.5, 1]},
    )


def test_what_was_saved_is_loaded_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, checkpoint_of(step), keep=2)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_10", "step_2"]
    loaded = load_checkpoint(tmp_path, FINGERPRINT)
    assert loaded.step == 10
    assert loaded.weights["w"].tolist() == [10, 11, 12]
    assert loaded.state == {"best": [0.5, 1]}


def test_state_that_json_cannot_hold_is_told_by_its_callback_before_anything_is_written(
    tmp_path: Path,
) -> None:
    state = {"callbacks": {"Fine": {"best": 1}, "Mine": {"seen": {1, 2}}}}
    with pytest.raises(CheckpointError, match="the state of callback 'Mine' cannot be written"):
        save_checkpoint(tmp_path, replace(checkpoint_of(1), state=state), keep=2)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_run_is_refused_by_name_of_what_differs(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint_of(1), keep=1)

    with pytest.raises(CheckpointError, match=r"step_1 belongs to another run: scenarios differ"):
        load_checkpoint(tmp_path, {**FINGERPRINT, "scenarios": "other"})


def test_checkpoints_that_another_run_left_cost_this_one_none_of_its_own(tmp_path: Path) -> None:
    for step in (30, 40):
        save_checkpoint(tmp_path, checkpoint_of(step), keep=2)
    other = {**FINGERPRINT, "scenarios": "other"}
    for step in (10, 20, 35):
        path = save_checkpoint(tmp_path, replace(checkpoint_of(step), fingerprint=other), keep=2)
        assert load_checkpoint(tmp_path, other).step == step
        assert path.is_dir()

    assert load_checkpoint(tmp_path, FINGERPRINT).step == 40


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no folder .*nowhere to resume from"):
        load_checkpoint(tmp_path / "nowhere", FINGERPRINT)
    with pytest.raises(CheckpointError, match="holds no checkpoint: name a folder step_<n>"):
        load_checkpoint(tmp_path, FINGERPRINT)


@pytest.mark.parametrize("file", ["config.json", "adapter_config.json"])
def test_a_policy_is_not_a_checkpoint_and_the_one_beside_it_is_named(
    tmp_path: Path, file: str
) -> None:
    step = save_checkpoint(tmp_path, checkpoint_of(3), keep=1)
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / file).write_text("{}")

    with pytest.raises(CheckpointError, match="holds a policy without") as caught:
        load_checkpoint(tmp_path / "final", FINGERPRINT)
    assert str(step) in str(caught.value)


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, checkpoint_of(1), keep=1)
    weights = path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])

    with pytest.raises(CheckpointError, match=r"step_1 is damaged"):
        load_checkpoint(tmp_path, FINGERPRINT)


_FILL_THE_DISK = """
from pathlib import Path
import torch
from stateset_agents.exceptions import CheckpointError
from stateset_agents.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

folder = Path({folder!r})
large = torch.zeros(1_000_000)
save_checkpoint(folder, Checkpoint(1, {{}}, {{"w": torch.tensor([1.0, 2, 3])}}, {{}}), keep=5)
{limit}
try:
    save_checkpoint(folder, Checkpoint(2, {{}}, {{"w": large}}, {{"w.exp_avg": large}}), keep=1)
except CheckpointError as error:
    print(error)
print(sorted(path.name for path in folder.iterdir()))
print(load_checkpoint(folder, {{}}).weights["w"].tolist())
"""
_LIMIT_FILES = (
    "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))"
)


def _assert_nothing_is_lost(output: str, folder: Path) -> None:
    message, names, weights = output.splitlines()
    assert message.startswith(f"{folder}: the checkpoint of step 2 needs 8,000,000 bytes")
    assert names == "['step_1']"
    assert weights == "[1.0, 2.0, 3.0]"


def test_a_write_that_fails_leaves_the_checkpoint_before_it_and_nothing_else(
    tmp_path: Path,
) -> None:
    script = _FILL_THE_DISK.format(folder=str(tmp_path), limit=_LIMIT_FILES)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    _assert_nothing_is_lost(done.stdout, tmp_path)


def test_a_full_disk_leaves_the_checkpoint_before_it_and_nothing_else(tmp_path: Path) -> None:
    script = tmp_path / "fill.py"
    folder = tmp_path / "disk"
    folder.mkdir()
    script.write_text(_FILL_THE_DISK.format(folder=str(folder), limit=""))
    mount = f"mount -t tmpfs -o size=1m tmpfs {folder}"
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True).returncode
    ):
        pytest.skip("a small disk cannot be mounted here")
    run = textwrap.dedent(f"{mount} && exec {sys.executable} {script}")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", run], capture_output=True, text=True, check=True
    )

    assert "No space left on device" in done.stdout
    _assert_nothing_is_lost(done.stdout, folder)


_KILL_AT_EVERY_EVENT = """
import itertools, os, shutil, signal, sys
from pathlib import Path
import torch
from stateset_agents.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

folder = Path(sys.argv[1]) / "checkpoints"

def checkpoint(value):
    return Checkpoint(3, {}, {"w": torch.full((2,), value)}, {})

found = []
for number in itertools.count():
    shutil.rmtree(folder, ignore_errors=True)
    save_checkpoint(folder, checkpoint(0.0), keep=2)
    child = os.fork()
    if child == 0:
        events = itertools.count()
        def hook(event, arguments):
            if event.startswith(("open", "os.", "shutil.")) and next(events) == number:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        save_checkpoint(folder, checkpoint(1.0), keep=2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    found.append(load_checkpoint(folder, {}).weights["w"].sum().item())
    if status == 0:
        break
print(found)
"""


def test_killed_anywhere_while_a_step_is_saved_again_its_old_or_its_new_checkpoint_is_whole(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILL_AT_EVERY_EVENT, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    turn = found.index(2.0)
    assert 5 < turn < len(found) - 1
    assert found == [0.0] * turn + [2.0] * (len(found) - turn)


def test_a_run_with_other_settings_does_not_take_the_checkpoint(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    settings = {"num_episodes": 2, "num_generations": 2}
    train(make_trainer(tiny_model_dir, **settings), [CheckpointCallback(tmp_path)])
    other = make_trainer(tiny_model_dir, **settings, learning_rate=0.5)

    with pytest.raises(CheckpointError, match="belongs to another run: training settings differ"):
        train(other, [], latest_checkpoint(tmp_path))


def test_when_to_save_and_to_log_may_change_between_runs(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    settings = {"num_episodes": 2, "num_generations": 2}
    first = make_trainer(tiny_model_dir, **settings)
    train(first, [CheckpointCallback(tmp_path)])
    other = make_trainer(tiny_model_dir, **settings, save_steps=7, logging_steps=3)

    train(other, [], tmp_path)

    assert other.step == other.total_steps
