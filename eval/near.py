"""Texts that say nearly the same, among many: MinHash finds who to compare, their shingles decide.

Owns: shingles, signatures and the index. Never: I/O, randomness that differs between runs, what to do with a duplicate.

The Jaccard similarity of two texts is that of their sets of word n-grams. MinHash (Broder 1997) estimates it: the share
of equal minima of PERMUTATIONS hash functions. The signature is cut into BANDS; two texts that agree in one band are
compared exactly. With 64 minima in 16 bands, a pair at 0.85 is missed once in 100,000 times.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from typing import Final

import numpy as np

WORDS: Final = 3
PERMUTATIONS: Final = 64
BANDS: Final = 16
THRESHOLD: Final = 0.85
SHINGLES_MAX: Final = 4000
"""Of a longer text, those whose hashes are smallest stand for it."""
_WORD: Final = re.compile(r"\w+|<[a-z]+-\d+>")


def normal(text: str) -> str:
    """The text as far as it matters here: words in lower case, single blanks."""
    return " ".join(_WORD.findall(text.casefold()))


def shingles(text: str) -> frozenset[int]:
    """Hashes of the text's word n-grams; of a text of fewer words, of all of it."""
    words = normal(text).split()
    grams = {" ".join(words[at : at + WORDS]) for at in range(max(1, len(words) - WORDS + 1))}
    hashes = sorted(int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=8).digest(), "big") for gram in grams)
    return frozenset(hashes[:SHINGLES_MAX])


def similarity(one: frozenset[int], other: frozenset[int]) -> float:
    """Jaccard: shared over all; 1 where both are empty."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0


class NearIndex:
    """Texts by name, to be asked for one that says nearly the same. What was added first is found first."""

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self._threshold = threshold
        self._texts: list[tuple[str, frozenset[int]]] = []
        self._bands: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        self._factors, self._terms = _coefficients()

    def find(self, text: str) -> str | None:
        """The name of the first added text that is at least as similar as the threshold; None where none is."""
        return self._find(shingles(text))

    def add(self, name: str, text: str) -> str | None:
        """Add a text, unless one that says nearly the same is there: then its name."""
        found = shingles(text)
        if (known := self._find(found)) is not None:
            return known
        for band in self._cut(found):
            self._bands[band].append(len(self._texts))
        self._texts.append((name, found))
        return None

    def _find(self, found: frozenset[int]) -> str | None:
        for number in sorted({one for band in self._cut(found) for one in self._bands.get(band, ())}):
            name, known = self._texts[number]
            if similarity(found, known) >= self._threshold:
                return name
        return None

    def _cut(self, found: frozenset[int]) -> list[tuple[int, bytes]]:
        """The signature in bands. The hash functions are multiplications modulo 2^64 (Dietzfelbinger et al. 1997)."""
        values = np.fromiter(found, dtype=np.uint64, count=len(found))
        signature = (self._factors * values + self._terms).min(axis=1)
        return [(number, band.tobytes()) for number, band in enumerate(signature.reshape(BANDS, -1))]


def _coefficients() -> tuple[np.ndarray, np.ndarray]:
    """Factors (odd) and terms of the hash functions, the same in every process; a column each."""
    digest = hashlib.shake_128(b"modelyard minhash").digest(16 * PERMUTATIONS)
    drawn = np.frombuffer(digest, dtype="<u8").astype(np.uint64).reshape(2, PERMUTATIONS, 1)
    return drawn[0] | np.uint64(1), drawn[1]
