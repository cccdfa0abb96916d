"""What a launcher starts in each process: `python launched.py MODEL FOLDER [different]`.

With the third word each process has a learning rate of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from safetensors.torch import save_file

from stateset_agents.training.callbacks import CheckpointCallback
from stateset_agents.training.distributed import DistributedTrainer
from tests.training.runs import train
from tests.training.test_distributed import parts_of


def main() -> None:
    """Train in as many processes as were started, and keep what each ends with."""
    model, folder = map(Path, sys.argv[1:3])
    settings = {}
    if sys.argv[3:] == ["different"]:
        settings = {"learning_rate": 1e-2 * (1 + int(os.environ["RANK"]))}
    trainer = DistributedTrainer(*parts_of(model, **settings), timeout_seconds=120)
    weights = train(trainer, [CheckpointCallback(folder / "checkpoints")])
    save_file(weights, folder / f"weights-{trainer.rank}.safetensors")


if __name__ == "__main__":
    main()
