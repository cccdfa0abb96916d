"""What the folder of a trained policy says about itself: `policy.json`.

Owns the file's name, its three kinds and how a folder is recognised: a whole `model`, a LoRA
`adapter` that needs its base model, or a `stub`, which a run without a model leaves behind and
whose answers are fixed. It does not load models.

    <save>/final/policy.json      kind, base model, algorithm, steps, how the policy speaks
    <save>/final/...              model or adapter files and the tokenizer; nothing for a stub
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stateset_agents.exceptions import ModelSourceError
from stateset_agents.tracking.merging import ADAPTER_CONFIG, is_adapter
from stateset_agents.tracking.model_sources import PROVENANCE
from stateset_agents.tracking.whole_folder import put_back

POLICY_FILE = "policy.json"
FINAL = "final"

Kind = Literal["model", "adapter", "stub"]


@dataclass(frozen=True, slots=True)
class PolicyFolder:
    """A folder that holds a policy.

    Attributes:
        folder: where it is.
        kind: what is in it.
        base_model: the folder that an adapter was trained on, as the run that trained it named it;
            None where the folder does not say.
        base_model_source: where that one came from, as in `base_model.source`; "" if not known.
        agent: settings of `GenerationSettings` that the policy was trained with; {} if not known.
        described: all of `policy.json`.
    """

    folder: Path
    kind: Kind
    base_model: Path | None = None
    base_model_source: str = ""
    agent: dict[str, Any] = field(default_factory=dict)
    described: dict[str, Any] = field(default_factory=dict)

    def base(self, given: Path | None = None) -> Path:
        """The base model's folder for an adapter: the one given, or the one that is named.

        Raises:
            ModelSourceError: there is none, or the one named has become another model since.
        """
        chosen = given or self.base_model
        if chosen is None or not chosen.is_dir():
            where = f"is not at {chosen}" if chosen else "is named nowhere"
            raise ModelSourceError(
                f"{self.folder} holds an adapter, and its base model {where}; fetch it again "
                f"({self.base_model_source or 'base_model.source'}), or name its folder: "
                "--base-model FOLDER"
            )
        found = source_of(chosen)
        if given is None and self.base_model_source and found not in ("", self.base_model_source):
            raise ModelSourceError(
                f"{self.folder} was trained on {self.base_model_source}, and {chosen} now holds "
                f"{found}; fetch the one that it was trained on, or name its folder: "
                "--base-model FOLDER"
            )
        return chosen


def read_policy_folder(folder: Path | str) -> PolicyFolder:
    """Recognise a policy's folder; one without `policy.json` may be a plain model or adapter.

    Raises:
        ModelSourceError: it is not there, is a training checkpoint (`step_<n>`), a folder of
            checkpoints, or nothing that can speak. The message says what to give instead.
    """
    folder = Path(folder)
    put_back(folder)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise ModelSourceError(
            f"{folder}: there is {found} here, and a checkpoint is a folder; `stateset-agents "
            f"train --save DIR` writes one to DIR/{FINAL}"
        )
    described = _read(folder / POLICY_FILE)
    if described.get("kind") == "stub":
        kind: Kind = "stub"
    elif is_adapter(folder):
        kind = "adapter"
        named = _read(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        described.setdefault("base_model", named)
    elif (folder / "config.json").is_file():
        kind = "model"
    else:
        raise ModelSourceError(_not_a_policy(folder))
    base = described.get("base_model")
    return PolicyFolder(
        folder,
        kind,
        Path(base) if base else None,
        str(described.get("base_model_source") or ""),
        dict(described.get("agent") or {}),
        described,
    )


def write_policy_file(folder: Path, described: Mapping[str, Any]) -> None:
    """Write `policy.json` into a folder that exists."""
    text = json.dumps(dict(described), indent=2, ensure_ascii=False)
    (folder / POLICY_FILE).write_text(text + "\n", encoding="utf-8")


def source_of(base_model: Path) -> str:
    """Where a base model's folder came from, as fetching it wrote down; "" if it does not say."""
    return str(_read(base_model / PROVENANCE).get("source") or "")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelSourceError(f"{path} cannot be read as JSON: {error}; train again") from error
    if not isinstance(value, dict):
        raise ModelSourceError(f"{path} must hold an object; train again")
    return value


def _not_a_policy(folder: Path) -> str:
    if (folder / "state.json").is_file():
        return (
            f"{folder} is a training checkpoint: it holds what a run needs to go on, not a model. "
            f"Finish the run (stateset-agents train --resume {folder}), which writes "
            f"{folder.parent / FINAL}, and give that"
        )
    if (folder / FINAL).is_dir():
        return f"{folder} is a folder of checkpoints, not one of them; give {folder / FINAL}"
    if any(folder.glob("step_*")):
        return (
            f"{folder} holds checkpoints of a run that is not finished; go on with "
            f"`stateset-agents train --resume {folder}`, which writes {folder / FINAL}"
        )
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
    return (
        f"{folder} holds no policy (found: {found}); allowed is a folder with a model "
        f"(config.json), a LoRA adapter ({ADAPTER_CONFIG}), or what `train --save` wrote to {FINAL}"
    )
