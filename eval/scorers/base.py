"""What every scorer is.

Owns: the interface. Never: a scorer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

Embed = Callable[[Sequence[str]], NDArray[np.float64]]
"""Texts -> one unit vector a row."""


class ScorerError(ValueError):
    """A scorer, option or target that cannot be used; the message is one clause with the remedy."""


class Scorer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options as fields; pure: the same answer and target always give the same score."""

    needs_embeddings: ClassVar[bool] = False

    def check(self, target: Any) -> None:
        """Raise ScorerError where `target` is nothing that this scorer can compare with."""

    def score(self, output: str, target: Any, embed: Embed | None = None) -> float:
        """Between 0 (wrong) and 1 (right)."""
        raise NotImplementedError


def need_text(target: Any, name: str) -> None:
    """Raise ScorerError unless `target` is a non-empty text or a list of them."""
    texts = target if isinstance(target, list | tuple) else [target]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ScorerError(f"the scorer {name!r} needs a text, or a list of texts, as its target")


def texts_of(target: Any) -> Sequence[str]:
    """The accepted answers: a list as it is, one text as a list of one."""
    return list(target) if isinstance(target, list | tuple) else [target]
