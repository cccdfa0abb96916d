"""What a whole model folder is, and how its weights change their number format.

Owns the checks: config.json names a model type, every safetensors file is as long as its own
header says, every shard of the index is there, the tokenizer loads. It does not know where a
folder comes from.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from stateset_agents.exceptions import ModelSourceError

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


def verify_model_folder(folder: Path, *, source: str, load: bool = True) -> None:
    """Check that a folder holds a whole model.

    Args:
        folder: what to look at.
        source: what to call it in messages.
        load: also load config and tokenizer with transformers (some seconds of imports); False
            checks the files alone.

    Raises:
        ModelSourceError: says which file is missing, cut short or unreadable.
    """
    config = _read_json(folder / "config.json", source)
    if not isinstance(config.get("model_type"), str):
        raise ModelSourceError(
            f"base model {source}: config.json names no model_type, so nothing can load it"
        )
    for name in weight_files(folder, source=source):
        safetensors_header(folder / name, source=source)
    tokenizer_files = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if not any((folder / name).is_file() for name in tokenizer_files):
        raise ModelSourceError(
            f"base model {source}: no tokenizer (none of {', '.join(tokenizer_files)}); a model is "
            "of no use without its own"
        )
    if load:
        _load_config_and_tokenizer(folder, source)


def weight_files(folder: Path, *, source: str) -> list[str]:
    """Names of the safetensors files that make up the model, by its index if it is sharded.

    Raises:
        ModelSourceError: there are none, or one that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_read_json(index, source).get("weight_map", {}).values()))
    else:
        names = ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "an empty folder"
        raise ModelSourceError(
            f"base model {source}: {', '.join(missing) or 'every weight file'} is missing; found: "
            f"{found}. Weights must be safetensors (pickles are not read: they can run code)"
        )
    return names


def safetensors_header(path: Path, *, source: str) -> dict[str, Any]:
    """The header of a safetensors file, after checking that the data it describes is all there.

    Raises:
        ModelSourceError: the file is cut short, has bytes too many, or is not safetensors.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= _MAX_HEADER_BYTES or length + 8 > size:
            raise ModelSourceError(
                f"base model {source}: {path.name} is not a whole safetensors file ({size:,} "
                "bytes, its header does not fit); fetch it again"
            )
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            entries = [entry for name, entry in header.items() if name != "__metadata__"]
            data = max((entry["data_offsets"][1] for entry in entries), default=0)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ModelSourceError(
                f"base model {source}: the header of {path.name} cannot be read ({error}); fetch "
                "the file again"
            ) from error
    if size != 8 + length + data:
        raise ModelSourceError(
            f"base model {source}: {path.name} is cut short or damaged: it has {size:,} bytes, and "
            f"its header describes {8 + length + data:,}; fetch it again"
        )
    return header


def cast_model_folder(folder: Path, dtype: str) -> None:
    """Rewrite the floating-point weights of a folder in `dtype`, in place, and say so in its
    config. The folder must be ours alone (`fetch_model` calls this on its temporary one).
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    target = getattr(torch, dtype)
    for name in weight_files(folder, source=str(folder)):
        path = folder / name
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {"format": "pt"}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if all(t.dtype == target for t in tensors.values() if t.is_floating_point()):
            continue
        cast = {k: t.to(target) if t.is_floating_point() else t for k, t in tensors.items()}
        save_file(cast, path, metadata=metadata)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)  # the older name; two that disagree would be worse
    config["dtype"] = dtype
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def make_readable(folder: Path) -> None:
    """Give a folder that was made as a private temporary one the modes that the umask allows."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _read_json(path: Path, source: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelSourceError(
            f"base model {source}: no {path.name}; this is not a model folder"
        ) from error
    except (ValueError, UnicodeDecodeError) as error:
        raise ModelSourceError(
            f"base model {source}: {path.name} is not JSON ({error}); fetch it again"
        ) from error
    if not isinstance(value, dict):
        raise ModelSourceError(f"base model {source}: {path.name} must hold an object")
    return value


def _load_config_and_tokenizer(folder: Path, source: str) -> None:
    from transformers import AutoConfig, AutoTokenizer

    # Whatever a broken file makes a third-party loader raise, it means the same here.
    try:
        AutoConfig.from_pretrained(folder)
    except Exception as error:
        raise ModelSourceError(
            f"base model {source}: transformers cannot use its config.json: {error}"
        ) from error
    try:
        AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise ModelSourceError(
            f"base model {source}: its tokenizer does not load: {error}"
        ) from error
