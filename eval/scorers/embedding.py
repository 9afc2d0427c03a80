"""Similarity of meaning, by sentence embeddings that the caller provides.

Owns: how a cosine becomes a score. Never: loading a model (eval/embeddings.py does).
"""

from __future__ import annotations

from typing import Any, ClassVar

from eval.scorers.base import EMBED, NO_TOOLS, Answered, Score, Scorer, ScorerError, Tools, need_text, texts_of


class EmbeddingSimilarity(Scorer, frozen=True):
    """The cosine between answer and target (the best of several), cut at 0; with `threshold`, 1 from there on."""

    needs: ClassVar[frozenset[str]] = frozenset({EMBED})

    threshold: float | None = None

    def check(self, target: Any) -> None:
        need_text(target, "embedding")

    def score(self, answered: Answered, target: Any, tools: Tools = NO_TOOLS) -> Score:
        if tools.embed is None:
            raise ScorerError("the scorer 'embedding' needs an embedding model: pip install '.[embed]'")
        vectors = tools.embed([answered.text, *texts_of(target)])
        best = max(0.0, float((vectors[1:] @ vectors[0]).max()))
        if self.threshold is not None:
            return Score(float(best >= self.threshold), f"cosine {best:.3f}")
        return Score(min(1.0, best))
