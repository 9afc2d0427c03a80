"""Intervals and tests for paired scores: the formulas, one function each.

Owns: the arithmetic of STATISTICS.md, offline part. Never: I/O, clocks, a generator of its own (`rng` is passed in),
or deciding which formula applies (compare.py does).

Sources: Miller 2024 (arXiv 2411.00640) for paired and clustered standard errors; Tango 1998 (Stat. Med. 17:891) for
the score interval of a paired difference of proportions; Fagerland et al. 2013 (BMC Med. Res. Methodol. 13:91) for
McNemar's mid-p; Efron 1987 (JASA 82:171) for BCa; Cameron et al. 2008 (Rev. Econ. Stat. 90:414) for the cluster
bootstrap-t; Holm 1979 (Scand. J. Stat. 6:65); Kish 1965 (Survey Sampling, 11.7) for the effective number of weighted
samples; Cochran 1977 (Sampling Techniques, 6.4) for the error of a weighted mean as that of a ratio.

`weights` say how much each value counts in the mean, Σ w·x / Σ w; None: all alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Array = NDArray[np.float64]

EXACT_BELOW: Final = 25
"""Discordant pairs under which McNemar's test is exact."""
BCA_ALONE_FROM: Final = 20
"""Values from which on a BCa interval's coverage is near its level."""
RESAMPLES: Final = 9_999
_CHUNK_CELLS: Final = 4_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided interval at 1 - alpha."""

    low: float
    high: float
    method: str


@dataclass(frozen=True, slots=True)
class MeanError:
    """A mean with its standard error. `df` are the degrees of freedom of its t."""

    mean: float
    se: float
    df: int
    sd: float


@dataclass(frozen=True, slots=True)
class Test:
    """A two-sided p-value of "no difference"."""

    p: float
    method: str


def wilson(successes: int, n: int, alpha: float) -> Interval:
    """Wilson's score interval for a proportion."""
    found = stats.binomtest(successes, n).proportion_ci(confidence_level=1 - alpha, method="wilson")
    return Interval(float(found.low), float(found.high), "Wilson")


def kish(weights: Array) -> float:
    """(Σ w)² / Σ w²: how many samples of equal weight tell as much. Kish 1965."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def percentile_bootstrap(
    values: Array, alpha: float, rng: np.random.Generator, resamples: int = RESAMPLES, weights: Array | None = None
) -> Interval:
    """Percentile bootstrap interval of a mean; weighted values are drawn with their weights."""
    means = np.concatenate(
        [np.asarray(_mean(values[drawn], _drawn(weights, drawn))) for drawn in _draws(len(values), rng, resamples)]
    )
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    return Interval(float(low), float(high), "percentile bootstrap")


def plain_error(d: Array, weights: Array | None = None) -> MeanError:
    """Mean, sd and SE = sd / √n, with n - 1 degrees of freedom. With weights, each value is a cluster of its own."""
    if weights is not None:
        return clustered_error(d, range(len(d)), weights)
    n = len(d)
    sd = float(d.std(ddof=1)) if n > 1 else 0.0
    return MeanError(float(d.mean()), sd / math.sqrt(n), n - 1, sd)


def clustered_error(d: Array, clusters: Sequence[Any], weights: Array | None = None) -> MeanError:
    """SE = √(Σ_c(Σ_{i∈c}w_i(d_i - d̄))² · C/(C-1)) / Σ w, with C - 1 degrees of freedom. Miller 2024, section 2.2; with
    weights Cochran 1977, 6.4."""
    codes = cluster_codes(clusters)
    count = int(codes.max()) + 1
    w = np.ones(len(d)) if weights is None else weights
    mean = float(_mean(d, weights))
    sums = np.bincount(codes, weights=w * (d - mean), minlength=count)
    correction = count / (count - 1) if count > 1 else 1.0
    se = math.sqrt(float((sums**2).sum()) * correction) / float(w.sum())
    return MeanError(mean, se, count - 1, plain_error(d).sd)


def t_interval(error: MeanError, alpha: float, method: str = "t") -> Interval:
    """mean ± t · SE."""
    if error.df < 1 or error.se == 0:
        return Interval(-1.0, 1.0, f"{method} (no spread seen)")
    half = float(stats.t.ppf(1 - alpha / 2, error.df)) * error.se
    return Interval(error.mean - half, error.mean + half, method)


def unseen_interval(n: float, alpha: float) -> Interval:
    """Where n units all showed no difference: ± z²/(n + z²), Tango's interval at no discordant pair. Never [0, 0]."""
    z2 = float(stats.norm.ppf(1 - alpha / 2)) ** 2
    return Interval(-z2 / (n + z2), z2 / (n + z2), "score, no difference seen")


def tango(gains: int, losses: int, n: int, alpha: float) -> Interval:
    """Score interval of (gains - losses) / n, the difference of two paired proportions. Tango 1998.

    The bounds are the differences Δ at which the score statistic, with the discordance estimated under Δ by maximum
    likelihood, equals ± z.
    """
    if gains == losses == 0:
        return unseen_interval(n, alpha)
    z = float(stats.norm.ppf(1 - alpha / 2))
    observed = (gains - losses) / n

    def score(delta: float) -> float:
        a = 2 * n
        b = -gains - losses + (2 * n - gains + losses) * delta
        c = -losses * delta * (1 - delta)
        q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = n * (2 * q + delta * (1 - delta))
        # At the rounding error of a vanishing variance the statistic is beyond any z, on the side of the numerator.
        return (gains - losses - n * delta) / math.sqrt(max(variance, 1e-300))

    edge = 1 - 1e-12
    low = -1.0 if score(-edge) <= z else optimize.brentq(lambda at: score(at) - z, -edge, observed, xtol=1e-10)
    high = 1.0 if score(edge) >= -z else optimize.brentq(lambda at: score(at) + z, observed, edge, xtol=1e-10)
    return Interval(float(low), float(high), "Tango score")


def mcnemar(gains: int, losses: int) -> Test:
    """McNemar's test: exact (binomial) under EXACT_BELOW discordant pairs, mid-p from there on."""
    if gains + losses < EXACT_BELOW:
        p = float(stats.binomtest(gains, gains + losses).pvalue) if gains + losses else 1.0
        return Test(p, "McNemar exact")
    return Test(mcnemar_mid_p(gains, losses), "McNemar mid-p")


def mcnemar_mid_p(gains: int, losses: int) -> float:
    """The exact two-sided p less the probability of what was observed, less half of it at a tie. Fagerland et al. 2013,
    whose supplement states the tie."""
    n, fewer = gains + losses, min(gains, losses)
    observed = float(stats.binom.pmf(fewer, n, 0.5))
    return 1 - observed / 2 if gains == losses else 2 * float(stats.binom.cdf(fewer, n, 0.5)) - observed


def sign_flip(
    d: Array,
    rng: np.random.Generator,
    clusters: Sequence[Any] | None = None,
    resamples: int = RESAMPLES,
    weights: Array | None = None,
) -> Test:
    """Paired permutation test of the mean: under no difference every d_i (or cluster) may as well have the other sign.

    p = (1 + #{|permuted| ≥ |observed|}) / (1 + resamples).
    """
    d = d if weights is None else d * weights
    sums = d if clusters is None else np.bincount(cluster_codes(clusters), weights=d)
    observed = abs(float(sums.sum()))
    least = observed * (1 - 1e-9) - 1e-12
    hits = 0
    step = max(1, _CHUNK_CELLS // len(sums))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        signs = rng.integers(0, 2, size=(rows, len(sums))) * 2.0 - 1.0
        hits += int((np.abs(signs @ sums) >= least).sum())
    return Test((1 + hits) / (1 + resamples), "paired permutation" + ("" if clusters is None else " of clusters"))


def bca(
    d: Array, alpha: float, rng: np.random.Generator, resamples: int = RESAMPLES, weights: Array | None = None
) -> Interval:
    """Bias-corrected and accelerated bootstrap interval of the mean; `unseen_interval` where all are 0.

    A bootstrap of few values is too narrow (of 5, its low end lies above the true mean three times too often), so under
    BCA_ALONE_FROM values, and wherever weights differ, the interval reaches at least as far as t's.
    """
    if not d.any():
        return unseen_interval(len(d) if weights is None else kish(weights), alpha)
    if len(d) < 2 or np.ptp(d) == 0:
        return Interval(-1.0, 1.0, "one value only: no spread known")
    found = stats.bootstrap(
        (d,) if weights is None else (d, weights),
        np.mean if weights is None else _mean,
        paired=weights is not None,
        n_resamples=resamples,
        confidence_level=1 - alpha,
        method="BCa",
        rng=rng,
        batch=_batch(len(d)),
    ).confidence_interval
    low, high = float(found.low), float(found.high)
    if weights is None and len(d) >= BCA_ALONE_FROM:
        return Interval(low, high, "BCa bootstrap")
    t = t_interval(plain_error(d, weights), alpha)
    return Interval(min(low, t.low), max(high, t.high), "BCa bootstrap or t, the wider")


def cluster_bootstrap_t(
    d: Array,
    clusters: Sequence[Any],
    alpha: float,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    weights: Array | None = None,
) -> Interval:
    """Bootstrap-t over whole clusters: draws clusters, studentises each draw's mean with its own clustered SE.

    A draw without spread counts as infinitely far out, so that few clusters give a wide interval and never a falsely
    narrow one; where such draws reach the wanted quantile, the t interval on C - 1 degrees of freedom is given.
    """
    error = clustered_error(d, clusters, weights)
    codes = cluster_codes(clusters)
    count = int(codes.max()) + 1
    if error.se == 0 or count < 2:
        return unseen_interval(count, alpha) if not d.any() else t_interval(error, alpha, "clustered t")
    w = np.ones(len(d)) if weights is None else weights
    sums = np.bincount(codes, weights=d * w, minlength=count)
    sizes = np.bincount(codes, weights=w, minlength=count)
    drawn = rng.integers(0, count, size=(resamples, count))
    totals, members = sums[drawn], sizes[drawn]
    n = members.sum(axis=1)
    means = totals.sum(axis=1) / n
    residuals = totals - members * means[:, None]
    se = np.sqrt((residuals**2).sum(axis=1) * count / (count - 1)) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (means - error.mean) / se
    away = np.where(means == error.mean, 0.0, np.copysign(np.inf, means - error.mean))
    t = np.where(se < 1e-12, away, t)
    low_t, high_t = np.quantile(t, [alpha / 2, 1 - alpha / 2], method="closest_observation")
    if not (math.isfinite(low_t) and math.isfinite(high_t)):
        return t_interval(error, alpha, "clustered t")
    return Interval(error.mean - high_t * error.se, error.mean - low_t * error.se, "cluster bootstrap-t")


def ratio_interval(
    numerators: Array, denominators: Array, alpha: float, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Interval:
    """Percentile bootstrap interval of Σ numerators / Σ denominators over the same samples."""
    draws = _draws(len(numerators), rng, resamples)
    top, bottom = np.concatenate(
        [(numerators[drawn].sum(axis=1), denominators[drawn].sum(axis=1)) for drawn in draws], 1
    )
    ratios = np.divide(top, bottom, out=np.full(resamples, np.nan), where=bottom > 0)
    low, high = np.nanquantile(ratios, [alpha / 2, 1 - alpha / 2])
    return Interval(float(low), float(high), "percentile bootstrap")


def minimum_detectable_effect(sd: float, n: int, alpha: float, power: float) -> float:
    """(z_{1-alpha/2} + z_power) · sd / √n: 2.8 · sd / √n at alpha .05 and power .8."""
    return _z_sum(alpha, power) * sd / math.sqrt(n)


def samples_needed(sd: float, effect: float, alpha: float, power: float) -> int | None:
    """The n at which `effect` is the minimum detectable one; None where the effect is 0."""
    if effect <= 0:
        return None
    return math.ceil((_z_sum(alpha, power) * sd / effect) ** 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values whose cut at alpha bounds the expected share of false discoveries, in the given order.
    Benjamini and Hochberg 1995 (J. R. Stat. Soc. B 57:289)."""
    return [float(q) for q in stats.false_discovery_control(p_values)] if p_values else []


def cluster_codes(clusters: Sequence[Any]) -> NDArray[np.intp]:
    """Names -> 0, 1, 2, … in sorted order."""
    codes: NDArray[np.intp] = np.unique(np.asarray(clusters), return_inverse=True)[1]
    return codes


def _mean(values: Array, weights: Array | None, axis: int = -1) -> Any:
    """Σ w·x / Σ w along an axis."""
    if weights is None:
        return values.mean(axis=axis)
    return (values * weights).sum(axis=axis) / weights.sum(axis=axis)


def _drawn(weights: Array | None, drawn: NDArray[np.int64]) -> Array | None:
    return None if weights is None else weights[drawn]


def _z_sum(alpha: float, power: float) -> float:
    return float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power))


def _draws(n: int, rng: np.random.Generator, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Rows of n indices drawn with replacement, so many at a time that they stay small however large n is."""
    step = _batch(n)
    for start in range(0, resamples, step):
        yield rng.integers(0, n, size=(min(step, resamples - start), n))


def _batch(n: int) -> int:
    return max(1, _CHUNK_CELLS // n)
