"""What a run leaves behind: `<save>/final`, a policy that can be evaluated and served.

Owns how a trainer's policy becomes a folder with its tokenizer and `policy.json`, and that the
folder is whole or not there. What the folder says is `tracking.policy_folder`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateset_agents.core.agent import GenerationSettings
from stateset_agents.exceptions import CheckpointError
from stateset_agents.tracking.policy_folder import FINAL, source_of, write_policy_file
from stateset_agents.tracking.whole_folder import in_place_of

if TYPE_CHECKING:
    from stateset_agents.training.trainer import Trainer


def save_final(trainer: Trainer, save_dir: Path | str) -> Path:
    """Write the policy to `save_dir/final`, in place of one that is there.

    Raises:
        CheckpointError: it could not be written; the one before is as it was.
    """
    return write_whole(Path(save_dir) / FINAL, lambda folder: write_policy(folder, trainer))


def write_whole(target: Path, write: Callable[[Path], None]) -> Path:
    """Call `write` with an empty folder and give it the name `target` when that went well.

    Raises:
        CheckpointError: the disk did not take it; what was there before is as it was.
    """
    try:
        with in_place_of(target) as folder:
            write(folder)
    except OSError as error:
        raise CheckpointError(
            f"{target} could not be written: {error}; make room, or give another folder"
        ) from error
    return target


def write_policy(folder: Path, trainer: Trainer, more: Mapping[str, Any] | None = None) -> None:
    """Fill a folder that exists: model or adapter, tokenizer, and `policy.json` with `more`."""
    trainer.save_policy(folder)
    trainer.agent.tokenizer.hf.save_pretrained(folder)
    base = Path(trainer.agent.config.model_name)
    described = {
        "base_model": str(base.resolve()) if base.is_dir() else str(base),
        "base_model_source": source_of(base),
        "kind": "adapter" if trainer.config.use_lora else "model",
        "algorithm": trainer.config.algorithm,
        "steps": trainer.step,
        "stop_reason": trainer.stop_reason,
        "fingerprint": trainer.fingerprint,
        "train": trainer.config.model_dump(),
        "agent": trainer.agent.config.model_dump(include=set(GenerationSettings.model_fields)),
    }
    write_policy_file(folder, {**described, **(more or {})})
