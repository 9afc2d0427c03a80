"""What a model is to the process that holds it, and the arithmetic that is the same for every library.

Owns: the interface, log-softmax, and how continuations are grouped by what the model has to read. Never: a library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
CHUNK: Final = 64
"""Positions whose distributions are in memory at once: 64 of a vocabulary of 150,000 are 38 MB."""


class RefusedError(Exception):
    """What the model cannot do; the message is one clause."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Continuations after what the model reads for all of them: `tokens` from 0, answers from position `first` on."""

    tokens: tuple[int, ...]
    first: int
    """The position whose distribution is that of the first token of each continuation."""
    asked: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    """Index of the question, and the continuation."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A continuation's log-likelihood in nats, its tokens, and whether it is what greedy decoding gives."""

    index: int
    logprob: float
    tokens: int
    greedy: bool


class Model(Protocol):
    """A loaded model. Positions are counted from 0; the distribution at position i is that of token i + 1."""

    vocabulary: int
    context: int
    """Tokens that fit."""
    bos: int | None
    library: str

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids; with `special`, those that the model wants around a plain text."""
        ...

    def texts(self, tokens: Sequence[int]) -> list[str]:
        """Each token as text, for showing."""
        ...

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The conversation as text, up to where the model answers. Raises RefusedError without a chat template."""
        ...

    def distributions(self, tokens: Sequence[int], first: int) -> Iterator[Rows]:
        """log p over the vocabulary at the positions from `first` to the last, at most CHUNK rows at a time."""
        ...

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens after these, each the likeliest; ends before an end-of-text token."""
        ...

    def scores(self, pieces: Sequence[Piece]) -> Iterator[Scored]:
        """The continuations' log-likelihoods, in any order."""
        ...


def log_softmax(logits: Rows) -> Rows:
    """log p per row, exact to float32: the sum is taken in float64."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    found: Rows = shifted - np.log(total).astype(np.float32)
    return found


def pieces_of(questions: Sequence[tuple[int, Sequence[int], Sequence[int]]]) -> list[Piece]:
    """(index, prompt, continuation) -> what the model has to read. Choices of one token each are read once.

    Prompt and continuation must not be empty. The last token of a continuation is never read: nothing follows it.
    """
    found: dict[tuple[tuple[int, ...], int], Piece] = {}
    for index, prompt, continuation in questions:
        tokens = (*prompt, *continuation[:-1])
        key = tokens, len(prompt) - 1
        found.setdefault(key, Piece(*key)).asked.append((index, tuple(continuation)))
    return list(found.values())


def gather(piece: Piece, rows: Rows) -> Iterator[Scored]:
    """The scores of a piece from the distributions at its positions from `first` on."""
    best = rows.argmax(axis=1)
    for index, continuation in piece.asked:
        ids = np.asarray(continuation)
        chosen = rows[np.arange(len(ids)), ids].astype(np.float64)
        yield Scored(index, float(chosen.sum()), len(ids), bool((best == ids).all()))
