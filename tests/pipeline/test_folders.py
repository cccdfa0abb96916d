"""An output is whole or as it was, also where the disk is full or the step is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tasks import folders
from tests.pipeline import project

FILL_THE_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from stateset_agents.exceptions import PipelineError
from tasks.folders import in_place

policy = Path(sys.argv[1]) / "policy"
with in_place(policy) as folder:
    save_file({"w": torch.zeros(1)}, folder / "first.safetensors")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with in_place(policy) as folder:
        save_file({"w": torch.zeros(1_000_000)}, folder / "second.safetensors")
except PipelineError as error:
    print(error)
print(sorted(str(path.relative_to(sys.argv[1])) for path in Path(sys.argv[1]).rglob("*")))
"""


def test_weights_that_do_not_fit_the_disk_are_one_message_and_the_old_ones_stay(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, str(tmp_path)],
        cwd=project.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    message, left = done.stdout.splitlines()
    assert message.startswith(f"{tmp_path / 'policy'} could not be written: ")
    assert "make room and start again" in message
    assert left == "['policy', 'policy/first.safetensors']"


KILLED = """
import os, signal, sys
from pathlib import Path
from tasks.expectations import temporary_folder
from tasks.folders import in_place

data = Path(sys.argv[1])
with in_place(data / "policy") as folder, temporary_folder(data / "validated"):
    (folder / "half.safetensors").write_text("half")
    (data / ".registration.json.tmp").write_text("{")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_step_removes_what_one_that_was_killed_left_unfinished(tmp_path: Path) -> None:
    data = tmp_path / "data"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(data)], cwd=project.ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(data.iterdir())) == 3
    for name in (".gitignore", ".policy-of-mine", "policy"):
        (data / name).write_text("a person's")
    with folders.at_work(tmp_path):
        assert {path.name for path in data.iterdir()} == {".gitignore", ".policy-of-mine", "policy"}


def test_what_another_step_is_writing_stays(tmp_path: Path) -> None:
    with (
        folders.at_work(tmp_path),
        folders.in_place(tmp_path / "data/policy") as folder,
        folders.at_work(tmp_path),
    ):
        assert folder.is_dir()


FILL_THE_DISK_WITH_A_RESULT = """
import resource, signal, sys
from pathlib import Path
from tasks.register_model import write_result

path = Path(sys.argv[1]) / "promotion.json"
write_result(path, {"promoted": True})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    write_result(path, {"promoted": False, "reasons": ["not better"]})
except OSError as error:
    print(error)
print(sorted(path.name for path in Path(sys.argv[1]).iterdir()), path.read_text())
"""


def test_a_result_that_does_not_fit_the_disk_is_named_and_the_old_one_stays(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK_WITH_A_RESULT, str(tmp_path)],
        cwd=project.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    message, left = done.stdout.split("\n", 1)
    assert message == f"[Errno 27] File too large: '{tmp_path / 'promotion.json'}'"
    assert left == "['promotion.json'] " + '{\n  "promoted": true\n}\n\n'
