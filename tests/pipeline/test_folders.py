"""An output is whole or as it was, also where the disk is full."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
