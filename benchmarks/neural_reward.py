"""How well a learned reward tells answers apart: on the project's own pairs, and on rated turns.

    python -m benchmarks.neural_reward pairs
    python -m benchmarks.neural_reward rated FILE.jsonl.gz

The first trains on data/preferences/train.jsonl and measures on heldout.jsonl, whose intents were
not trained on. The second takes lines `{"conversation_id", "prompt", "completion", "label"}` and
holds a fifth of the conversations out. Both start from the base model in data/base_model and show
what the length of the answers alone would have told.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import time
from pathlib import Path
from typing import Any

from stateset_agents.training.neural_reward_trainer import NeuralRewardTrainer

BASE_MODEL = Path("data/base_model")
PREFERENCES = Path("data/preferences")

# The lower third of the model tells answers apart as well, and costs a third.
SETTINGS: dict[str, Any] = {"base_layers": 10, "trained_layers": 2, "num_epochs": 2}
# Turns are long conversations; the last two hundred tokens say what was asked.
RATED_SETTINGS: dict[str, Any] = {**SETTINGS, "max_tokens": 192, "batch_pairs": 32}


def _lines(path: Path) -> list[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


async def _measure(words: list[str]) -> None:
    if words[:1] == ["pairs"]:
        trainer = NeuralRewardTrainer(
            BASE_MODEL,
            _lines(PREFERENCES / "train.jsonl"),
            heldout_data=_lines(PREFERENCES / "heldout.jsonl"),
            **SETTINGS,
        )
    else:
        trainer = NeuralRewardTrainer(BASE_MODEL, _lines(Path(words[1])), **RATED_SETTINGS)
    started = time.perf_counter()
    await trainer.train()
    seconds = time.perf_counter() - started
    figures = {**trainer.metrics, "seconds": round(seconds)}
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    asyncio.run(_measure(sys.argv[1:]))
