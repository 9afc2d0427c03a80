"""How far two or more raters agree: Cohen's kappa, Krippendorff's alpha.

Owns: the formulas. Never: I/O, randomness, what a rating means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Literal

Level = Literal["nominal", "ordinal", "interval"]


def cohen_kappa(left: Sequence[Hashable], right: Sequence[Hashable]) -> float | None:
    """(p_o - p_e) / (1 - p_e): agreement beyond what the two raters' own frequencies give by chance (Cohen 1960).

    None where chance alone agrees always: both gave one and the same rating throughout, which shows nothing.
    """
    n = len(left)
    observed = sum(a == b for a, b in zip(left, right, strict=True)) / n
    counts = Counter(left), Counter(right)
    expected = sum(counts[0][rating] * counts[1][rating] for rating in counts[0]) / n**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def krippendorff_alpha(units: Sequence[Sequence[float | None]], level: Level) -> float | None:
    """1 - D_o / D_e over units with one rating per rater, None where a rater gave none (Krippendorff 2011).

    Units with fewer than two ratings tell nothing and are left out. None where there is no pair of ratings, or where
    all ratings are one and the same, which shows nothing.
    """
    rated = [[value for value in unit if value is not None] for unit in units]
    rated = [unit for unit in rated if len(unit) > 1]
    totals = Counter(value for unit in rated for value in unit)
    n = totals.total()
    if len(totals) < 2:
        return None
    distance = _distance(totals, level)
    observed = sum(_disagreement(Counter(unit), distance) / (len(unit) - 1) for unit in rated)
    expected = _disagreement(totals, distance) / (n - 1)
    return 1 - observed / expected


def _disagreement(counts: Mapping[float, int], distance: Callable[[float, float], float]) -> float:
    """The sum of distances over all ordered pairs of different ratings."""
    ratings = sorted(counts)
    pairs = ((a, b) for index, a in enumerate(ratings) for b in ratings[index + 1 :])
    return 2 * sum(counts[a] * counts[b] * distance(a, b) for a, b in pairs)


def _distance(totals: Mapping[float, int], level: Level) -> Callable[[float, float], float]:
    """The squared difference of two ratings on that level of measurement."""
    if level == "nominal":
        return lambda a, b: float(a != b)
    if level == "interval":
        return lambda a, b: (a - b) ** 2
    ratings = sorted(totals)
    upto: dict[float, float] = {}
    so_far = 0.0
    for rating in ratings:  # ranks: the sum from a to b is a difference of these
        upto[rating] = so_far + totals[rating] / 2
        so_far += totals[rating]
    return lambda a, b: (upto[b] - upto[a]) ** 2
