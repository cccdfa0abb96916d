"""How many parameters a model has, from its name or its config.json, without loading it.

Owns the estimate that decides between full weights and an adapter. It does not know training.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([kmb])(?![a-z0-9])")


def estimated_parameters(model_name: str) -> float | None:
    """About how many parameters, or None where neither the folder nor the name tells.

    A folder's config.json is believed before the name. Each layer counts 4 D^2 for attention (less
    where keys and values have fewer heads) and its feed-forward products, the vocabulary V D, twice
    where the head is not tied.
    """
    config = Path(model_name) / "config.json"
    if config.is_file():
        counted = _counted(json.loads(config.read_text(encoding="utf-8")))
        if counted is not None:
            return counted
    found = _SIZE.findall(Path(model_name).name.lower())
    return float(found[-1][0]) * _UNITS[found[-1][1]] if found else None


def _counted(config: dict[str, object]) -> float | None:
    def number(*names: str) -> int | None:
        values = [config.get(name) for name in names]
        return next((value for value in values if isinstance(value, int)), None)

    hidden = number("hidden_size", "n_embd")
    layers = number("num_hidden_layers", "n_layer")
    vocabulary = number("vocab_size")
    if hidden is None or layers is None or vocabulary is None:
        return None
    heads = number("num_attention_heads", "n_head") or 1
    shared = (number("num_key_value_heads") or heads) / heads
    inner = number("intermediate_size", "n_inner")
    # a model that names no inner size is of the older kind: two products, four times as wide
    feed_forward = 3 * hidden * inner if inner else 8 * hidden * hidden
    attention = (2 + 2 * shared) * hidden * hidden
    tied = config.get("tie_word_embeddings", True)
    return layers * (attention + feed_forward) + (1 if tied else 2) * vocabulary * hidden
