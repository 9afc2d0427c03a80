"""How far two samples are apart, and how surely: the formulas of live drift, one function each.

Owns: the arithmetic of STATISTICS.md's drift section for numbers and categories. Never: I/O, clocks, a generator of its
own (`rng` is passed in), deciding what a distance means (live_drift).

Every p-value is by permutation at the samples' own sizes: under no drift the labels "reference" and "current" may as
well stand otherwise. Samples of one conversation or user stay together (`units`), as they are not independent. Bins and
categories are made of both samples pooled, so they do not depend on the labels and the test is exact.

Sources: PSI as in Siddiqi 2006 (Credit Risk Scorecards) and Evidently's `psi`; its mean under no drift,
(B - 1)(1/N + 1/M), in Yurdakul and Naranjo 2020 (J. Risk Model Validation 14:89); Jensen-Shannon, normed Wasserstein
and χ² as Evidently computes them; permutation p = (1 + #{permuted ≥ observed}) / (1 + R), Phipson and Smyth 2010
(Stat. Appl. Genet. Mol. Biol. 9:39); Benjamini and Hochberg 1995 (J. R. Stat. Soc. B 57:289).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial import distance

Array = NDArray[np.float64]
Labels = NDArray[np.float32]
"""R x n, 1 where a permutation calls the sample current and 0 where reference."""

BINS: Final = 10
CATEGORIES_MAX: Final = 12
EXPECTED_MIN: Final = 5.0
"""Categories whose expected count in either sample is under this are pooled into `other`."""
OTHER: Final = "other"
SMOOTHING: Final = 0.5
"""Added to every count, so that a bin that one sample lacks has a finite PSI (Jeffreys' prior)."""
RESAMPLES: Final = 999
_TIE: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Table:
    """Both samples in bins or categories."""

    names: tuple[str, ...]
    codes: NDArray[np.intp]
    """Of each sample, the reference's first."""
    reference: Array
    """Counts."""
    current: Array

    @property
    def onehot(self) -> Labels:
        return np.eye(len(self.names), dtype=np.float32)[self.codes]


def psi(reference: Array, current: Array, smoothing: float = SMOOTHING) -> Array:
    """Population stability index Σ (q - p) ln(q / p) of counts along the last axis, in nats. 0: the same shares."""
    p, q = _shares(reference, smoothing), _shares(current, smoothing)
    index: Array = ((q - p) * np.log(q / p)).sum(axis=-1)
    return index


def psi_noise(bins: int, reference: int, current: int) -> float:
    """E[PSI] under no drift, about: (B - 1)(1/N + 1/M)."""
    return (bins - 1) * (1 / reference + 1 / current)


def psi_spread(bins: int, reference: int, current: int) -> float:
    """The standard deviation of PSI under no drift, about: PSI / (1/N + 1/M) is χ² with B - 1 degrees of freedom."""
    return math.sqrt(2 * (bins - 1)) * (1 / reference + 1 / current)


def log_ratios(table: Table) -> Array:
    """ln(q / p) of each bin. Their mean over the current sample is its half of the PSI: what one sample adds to it."""
    ratios: Array = np.log(_shares(table.current, SMOOTHING) / _shares(table.reference, SMOOTHING))
    return ratios


def jensen_shannon(reference: Array, current: Array) -> float:
    """Jensen-Shannon distance of counts: the root of the divergence in bits, between 0 and 1."""
    found = float(distance.jensenshannon(reference / reference.sum(), current / current.sum(), base=2))
    return found if math.isfinite(found) else 0.0  # the root of a rounding error under 0


def chi_square(reference: Array, current: Array) -> Array:
    """Pearson's χ² of homogeneity of two rows of counts, along the last axis."""
    n, m = reference.sum(axis=-1, keepdims=True), current.sum(axis=-1, keepdims=True)
    pooled = (reference + current) / (n + m)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = (reference - n * pooled) ** 2 / (n * pooled) + (current - m * pooled) ** 2 / (m * pooled)
    found: Array = np.where(pooled > 0, parts, 0.0).sum(axis=-1)
    return found


def wasserstein(reference: Array, current: Array) -> float:
    """Wasserstein-1 distance in standard deviations of the reference (at least .001 of the value's unit)."""
    return float(stats.wasserstein_distance(reference, current)) / max(float(np.std(reference)), 0.001)


def bin_numbers(reference: Array, current: Array, bins: int = BINS) -> Table:
    """Both samples in bins that hold equal parts of them pooled. Values that are often the same make fewer bins."""
    pooled = np.concatenate([reference, current])
    values, counts = np.unique(pooled, return_counts=True)
    if len(values) <= bins:
        edges = values[1:]
    else:
        edges = np.unique(np.quantile(pooled, np.arange(1, bins) / bins, method="higher"))
        heavy = values[counts >= len(pooled) / bins]  # a value that fills a bin has it for itself
        above = np.searchsorted(values, heavy, side="right")
        edges = np.unique(np.concatenate([edges, heavy, values[above[above < len(values)]]]))
        edges = edges[edges > values[0]]
    codes = np.searchsorted(edges, pooled, side="right")
    lows = [values[0], *edges]
    names = [f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}" for low, high in _ranges(lows, values)]
    return _table(tuple(names), codes, len(reference))


def bin_categories(reference: Sequence[str], current: Sequence[str]) -> Table:
    """Counts of categories; rare ones (see EXPECTED_MIN, CATEGORIES_MAX) together as OTHER."""
    pooled = np.asarray([*reference, *current], dtype=np.str_)
    values, codes, counts = np.unique(pooled, return_inverse=True, return_counts=True)
    smaller = min(len(reference), len(current)) / len(pooled)
    order = np.argsort(-counts, kind="stable")
    kept = [index for index in order[:CATEGORIES_MAX] if counts[index] * smaller >= EXPECTED_MIN]
    place = np.full(len(values), len(kept))
    place[kept] = np.arange(len(kept))
    names = [str(values[index]) for index in kept]
    return _table((*names, OTHER) if len(kept) < len(values) else tuple(names), place[codes], len(reference))


def permutations(
    reference: int,
    current: int,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    units: Sequence[Any] | None = None,
) -> Labels:
    """Labels as they may as well stand under no drift.

    `units` names what each sample belongs to (its conversation or user), the reference's first: whole units change
    sides. A unit that is in both windows counts as two.
    """
    codes, sides = _units(reference, reference + current, units)
    labels = np.tile(sides, (resamples, 1))
    whole: Labels = rng.permuted(labels, axis=1)[:, codes]
    return whole


def bootstrap_weights(
    reference: int,
    current: int,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    units: Sequence[Any] | None = None,
) -> Labels:
    """How often each draw of a bootstrap takes each sample, R x n: whole units are drawn, each side from its own."""
    codes, sides = _units(reference, reference + current, units)
    weights = np.zeros((resamples, len(sides)), dtype=np.float32)
    for side in (0.0, 1.0):
        own = np.flatnonzero(sides == side)
        drawn = rng.integers(0, len(own), size=(resamples, len(own))) + len(own) * np.arange(resamples)[:, None]
        weights[:, own] = np.bincount(drawn.ravel(), minlength=resamples * len(own)).reshape(resamples, len(own))
    return weights[:, codes]


def permuted_counts(table: Table, labels: Labels) -> tuple[Array, Array]:
    """The counts of reference and current under each permutation, R x bins."""
    current = (labels @ table.onehot).astype(np.float64)
    return table.reference + table.current - current, current


def permutation_p(observed: float, permuted: Array) -> float:
    """(1 + #{permuted ≥ observed}) / (1 + R): never 0, exact whatever R."""
    hits = int((permuted >= observed * (1 - _TIE) - 1e-12).sum())
    return (1 + hits) / (1 + len(permuted))


def joint_p(observed: Sequence[float], permuted: Sequence[Array]) -> float:
    """The p of the smallest of several tests' p, all over the same permutations (Westfall and Young 1993's min-p)."""
    ranks = []
    for value, others in zip(observed, permuted, strict=True):
        together = np.append(others, value)
        together = np.where(np.abs(together - value) <= _TIE * abs(value) + 1e-12, value, together)
        ranks.append(stats.rankdata(-together, method="max"))
    least = np.min(ranks, axis=0)
    return float((least <= least[-1]).mean())


def ks(reference: Array, current: Array) -> float:
    """Kolmogorov-Smirnov's D: the largest difference of the two distribution functions."""
    labels = np.zeros((1, len(reference) + len(current)), dtype=np.float32)
    labels[:, len(reference) :] = 1.0
    return float(ks_permuted(reference, current, labels)[0])


def ks_permuted(reference: Array, current: Array, labels: Labels) -> Array:
    """D under each of the labellings. Equal values are one step."""
    pooled = np.concatenate([reference, current])
    order = np.argsort(pooled, kind="stable")
    steps = np.flatnonzero(np.append(np.diff(pooled[order]) > 0, True))
    below = np.cumsum(labels[:, order], axis=1, dtype=np.float32)[:, steps]
    m = labels.sum(axis=1, keepdims=True)
    everything = (steps + 1).astype(np.float32)
    apart: Array = np.abs(below / m - (everything - below) / (len(pooled) - m)).max(axis=1).astype(np.float64)
    return apart


def psi_interval(table: Table, weights: Labels, alpha: float) -> tuple[float, float]:
    """Interval of the PSI at 1 - alpha by the basic bootstrap, which takes its upward bias away; never under 0."""
    split = int(table.reference.sum())
    onehot = table.onehot
    drawn = psi(
        (weights[:, :split] @ onehot[:split]).astype(np.float64),
        (weights[:, split:] @ onehot[split:]).astype(np.float64),
    )
    observed = float(psi(table.reference, table.current))
    low, high = np.quantile(drawn, [alpha / 2, 1 - alpha / 2])
    return max(0.0, 2 * observed - float(high)), max(0.0, 2 * observed - float(low))


def mean_difference(reference: Array, current: Array, weights: Labels, alpha: float) -> tuple[float, float, float]:
    """current - reference of the means, with its percentile bootstrap interval at 1 - alpha."""
    split = len(reference)
    one, two = weights[:, :split].astype(np.float64), weights[:, split:].astype(np.float64)
    drawn = two @ current / np.maximum(two.sum(axis=1), 1) - one @ reference / np.maximum(one.sum(axis=1), 1)
    low, high = np.quantile(drawn, [alpha / 2, 1 - alpha / 2])
    return float(current.mean() - reference.mean()), float(low), float(high)


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """q-values: p adjusted so that q ≤ α holds the false discovery rate over all of them at α."""
    if not p:
        return []
    return [float(q) for q in stats.false_discovery_control(np.asarray(p), method="bh")]


def _units(split: int, n: int, units: Sequence[Any] | None) -> tuple[NDArray[np.intp], Labels]:
    """The unit of each sample, and the side that each unit is on (0: reference, 1: current)."""
    if units is None:
        units = range(n)
    names = [(index >= split, unit) for index, unit in enumerate(units)]
    ids = {name: index for index, name in enumerate(dict.fromkeys(names))}
    codes = np.fromiter((ids[name] for name in names), dtype=np.intp, count=n)
    return codes, np.fromiter((float(late) for late, _ in ids), dtype=np.float32, count=len(ids))


def _shares(counts: Array, smoothing: float) -> Array:
    smoothed = np.asarray(counts, dtype=np.float64) + smoothing
    shares: Array = smoothed / smoothed.sum(axis=-1, keepdims=True)
    return shares


def _ranges(lows: Sequence[float], values: Array) -> list[tuple[float, float]]:
    """The least and the largest value in each bin."""
    ends = [*lows[1:], math.inf]
    highs = [float(values[np.searchsorted(values, end, side="left") - 1]) for end in ends]
    return [(float(low), high) for low, high in zip(lows, highs, strict=True)]


def _table(names: tuple[str, ...], codes: NDArray[np.intp], split: int) -> Table:
    def counts(some: NDArray[np.intp]) -> Array:
        return np.bincount(some, minlength=len(names)).astype(np.float64)

    return Table(names, codes, counts(codes[:split]), counts(codes[split:]))
