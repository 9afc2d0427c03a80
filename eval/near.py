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

WORDS: Final = 3
PERMUTATIONS: Final = 64
BANDS: Final = 16
THRESHOLD: Final = 0.85
SHINGLES_MAX: Final = 4000
"""Of a longer text, those whose hashes are smallest stand for it."""
_PRIME: Final = (1 << 61) - 1
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
        self._shingles: dict[str, frozenset[int]] = {}
        self._bands: dict[tuple[int, tuple[int, ...]], list[str]] = defaultdict(list)
        self._functions = [_coefficients(number) for number in range(PERMUTATIONS)]

    def find(self, text: str) -> str | None:
        """The name of the first added text that is at least as similar as the threshold; None where none is."""
        return self._find(shingles(text))

    def add(self, name: str, text: str) -> str | None:
        """Add a text, unless one that says nearly the same is there: then its name."""
        found = shingles(text)
        if (known := self._find(found)) is not None:
            return known
        self._shingles[name] = found
        for band in self._cut(found):
            self._bands[band].append(name)
        return None

    def _find(self, found: frozenset[int]) -> str | None:
        candidates = {name for band in self._cut(found) for name in self._bands.get(band, ())}
        for name in (one for one in self._shingles if one in candidates) if candidates else ():
            if similarity(found, self._shingles[name]) >= self._threshold:
                return name
        return None

    def _cut(self, found: frozenset[int]) -> list[tuple[int, tuple[int, ...]]]:
        signature = [min((a * value + b) % _PRIME for value in found) for a, b in self._functions]
        rows = PERMUTATIONS // BANDS
        return [(band, tuple(signature[band * rows : (band + 1) * rows])) for band in range(BANDS)]


def _coefficients(number: int) -> tuple[int, int]:
    """Of one hash function, the same in every process."""
    digest = hashlib.blake2b(b"modelyard minhash %d" % number, digest_size=16).digest()
    a, b = int.from_bytes(digest[:8], "big") % _PRIME, int.from_bytes(digest[8:], "big") % _PRIME
    return a or 1, b
