"""How far two models' next-token distributions on the same tokens are apart.

Owns: the measures, from log-probabilities of both at the same positions. Never: I/O, clocks, a model, a generator of
its own (`rng` is passed in), calling drift good or bad.

P is the baseline, Q the candidate; all in nats. Positions of one prompt are not independent, so every interval is
clustered by prompt. With the k likeliest tokens only, those that both lists name are compared and the rest of each
distribution is pooled into one bucket: by the data processing inequality (Cover and Thomas 2006, section 2.8; the
log-sum inequality) no such coarse-graining increases KL, so the figure is a lower bound and is labelled as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from eval import statistics
from eval.statistics import Array, Interval, MeanError

Rows = NDArray[np.float32]
Bound = Literal["exact", "lower bound"]

BOOTSTRAP_BELOW: Final = 40
"""Prompts under which the interval of a mean is a cluster bootstrap's, as in STATISTICS.md."""
RESAMPLES: Final = 2_000
FLOAT_ERROR: Final = 1e-6
"""KL of two equal distributions in float32, about: what is under it is no difference seen."""
SLACK: Final = 1e-6
"""Rounding of a sum of probabilities in float32, about."""
_CELLS: Final = 4_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval at 1 - alpha."""

    value: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Positions:
    """One prompt's positions, in order: a number each."""

    kl: Array
    """KL(P‖Q), or what it is at least."""
    log_p: Array
    """Log-probability of the token that stands there, by the baseline."""
    log_q: Array
    agree: NDArray[np.bool_]
    """Whether both find the same token likeliest."""


@dataclass(frozen=True, slots=True)
class Worst:
    """A prompt and where in it the two are furthest apart."""

    prompt: str
    mean_kl: float
    max_kl: float
    position: int
    """Of the largest KL, counted from the first position measured."""
    positions: int


@dataclass(frozen=True, slots=True)
class Band:
    """Mean KL of the positions from `start` up to `end`, over all prompts."""

    start: int
    end: int
    n: int
    mean_kl: float


@dataclass(frozen=True, slots=True)
class TokenDrift:
    """The drift over `n` positions of `prompts` prompts."""

    bound: Bound
    n: int
    prompts: int
    mean_kl: Estimate
    p90_kl: Estimate
    p99_kl: Estimate
    max_kl: float
    rms_delta_p: Estimate
    """Root mean square of p - q of the token that stands there."""
    top1_agreement: Estimate
    perplexity: tuple[float, float]
    """Of the baseline and of the candidate, on the same tokens."""
    perplexity_ratio: Estimate
    """Candidate's by baseline's: above 1, the candidate finds the tokens less likely."""
    bands: tuple[Band, ...]
    worst: tuple[Worst, ...]
    """The prompts with the largest mean KL, the worst first."""


def kl_rows(log_p: Rows, log_q: Rows) -> Array:
    """KL(P‖Q) = Σ p (log p - log q) per row, over the whole vocabulary. Summed in float64; never under 0.

    Where q is 0 and p is not it is infinite; where p is 0 a token adds nothing.
    """
    p = np.exp(log_p, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        parts = p * (log_p.astype(np.float64) - log_q)
    found: Array = np.where(p > 0, parts, 0.0).sum(axis=1)
    return np.maximum(found, 0.0)


def kl_lower_bound(log_p: Mapping[int, float], log_q: Mapping[int, float]) -> float:
    """What KL(P‖Q) is at least, from some tokens of each: those that both name one by one, all others as one bucket."""
    shared = log_p.keys() & log_q.keys()
    found, p_known, q_known = 0.0, 0.0, 0.0
    for token in shared:
        p, q = math.exp(log_p[token]), math.exp(log_q[token])
        p_known, q_known = p_known + p, q_known + q
        found += p * (log_p[token] - log_q[token]) if p > 0 else 0.0
    # Log-probabilities come in float32, so the rests are known to about SLACK. More of it in Q's only lowers the bound.
    p_rest, q_rest = max(0.0, 1.0 - p_known), max(0.0, 1.0 - q_known) + SLACK
    if p_rest > 0:
        found += p_rest * math.log(p_rest / q_rest)
    return max(0.0, found)


def compare_rows(log_p: Rows, log_q: Rows, tokens: Sequence[int]) -> Positions:
    """Positions with both whole distributions: a row each, and the token that stands there."""
    ids, rows = np.asarray(tokens), np.arange(len(tokens))
    return Positions(
        kl=kl_rows(log_p, log_q),
        log_p=log_p[rows, ids].astype(np.float64),
        log_q=log_q[rows, ids].astype(np.float64),
        agree=log_p.argmax(axis=1) == log_q.argmax(axis=1),
    )


def compare_top_k(
    log_p: Sequence[Mapping[int, float]], log_q: Sequence[Mapping[int, float]], tokens: Sequence[int]
) -> Positions:
    """Positions with some tokens of each distribution: the likeliest ones, and the one that stands there."""
    pairs = list(zip(log_p, log_q, strict=True))
    return Positions(
        kl=np.array([kl_lower_bound(p, q) for p, q in pairs]),
        log_p=np.array([row[token] for row, token in zip(log_p, tokens, strict=True)]),
        log_q=np.array([row[token] for row, token in zip(log_q, tokens, strict=True)]),
        agree=np.array([max(p, key=p.__getitem__) == max(q, key=q.__getitem__) for p, q in pairs], dtype=np.bool_),
    )


def joined(parts: Sequence[Positions]) -> Positions:
    """The chunks of one prompt as one."""
    return Positions(
        kl=np.concatenate([part.kl for part in parts]),
        log_p=np.concatenate([part.log_p for part in parts]),
        log_q=np.concatenate([part.log_q for part in parts]),
        agree=np.concatenate([part.agree for part in parts]),
    )


@dataclass(slots=True)
class Collected:
    """What is kept while prompts go by: four numbers a position, whatever the vocabulary's size."""

    bound: Bound
    names: list[str] = field(default_factory=list)
    parts: list[Positions] = field(default_factory=list)

    def add(self, name: str, positions: Positions) -> None:
        """One prompt. Prompts without a position are left out."""
        if len(positions.kl):
            self.names.append(name)
            self.parts.append(positions)

    def summary(self, *, alpha: float, rng: np.random.Generator, worst: int = 5) -> TokenDrift | None:
        """The drift over all prompts; None where there is no position."""
        if not self.parts:
            return None
        whole = joined(self.parts)
        sizes = [len(part.kl) for part in self.parts]
        clusters = np.repeat(np.arange(len(sizes)), sizes)
        delta = np.exp(whole.log_p) - np.exp(whole.log_q)
        change = whole.log_p - whole.log_q
        ratio = _mean(change, clusters, alpha, rng, unbounded=True)
        p90, p99, rms = _resampled(whole.kl, delta**2, clusters, alpha, rng)
        return TokenDrift(
            bound=self.bound,
            n=len(whole.kl),
            prompts=len(sizes),
            mean_kl=_mean(whole.kl, clusters, alpha, rng, high=math.inf),
            p90_kl=p90,
            p99_kl=p99,
            max_kl=float(whole.kl.max()),
            rms_delta_p=rms,
            top1_agreement=_share(whole.agree, clusters, alpha, rng),
            perplexity=(math.exp(-float(whole.log_p.mean())), math.exp(-float(whole.log_q.mean()))),
            perplexity_ratio=Estimate(math.exp(ratio.value), _exp(ratio.interval)),
            bands=_bands(self.parts),
            worst=self._worst(worst),
        )

    def _worst(self, count: int) -> tuple[Worst, ...]:
        found = [
            Worst(name, float(part.kl.mean()), float(part.kl.max()), int(part.kl.argmax()), len(part.kl))
            for name, part in zip(self.names, self.parts, strict=True)
        ]
        return tuple(sorted(found, key=lambda one: -one.mean_kl)[:count])


def _mean(
    values: Array,
    clusters: NDArray[np.intp],
    alpha: float,
    rng: np.random.Generator,
    *,
    high: float = math.inf,
    unbounded: bool = False,
) -> Estimate:
    """The mean over positions with its interval over prompts: t on C - 1, the cluster bootstrap-t under 40."""
    low = -math.inf if unbounded else 0.0
    error = statistics.clustered_error(values, clusters.tolist())
    if np.abs(values).max() <= FLOAT_ERROR:
        return Estimate(error.mean, Interval(error.mean, error.mean, "no difference seen"))
    if error.df < 1:
        return Estimate(error.mean, Interval(low, high, "one prompt: no spread known"))
    interval = _interval(values, clusters, error, alpha, rng)
    return Estimate(error.mean, Interval(max(low, interval.low), min(high, interval.high), interval.method))


def _interval(
    values: Array, clusters: NDArray[np.intp], error: MeanError, alpha: float, rng: np.random.Generator
) -> Interval:
    if error.df + 1 < BOOTSTRAP_BELOW:
        return statistics.cluster_bootstrap_t(values, clusters.tolist(), alpha, rng, RESAMPLES)
    return statistics.t_interval(error, alpha, "clustered t")


def _share(flags: NDArray[np.bool_], clusters: NDArray[np.intp], alpha: float, rng: np.random.Generator) -> Estimate:
    """A share of positions. Where all agree (or none), what the number of prompts allows: Wilson's interval over it."""
    value, prompts = float(flags.mean()), int(clusters[-1]) + 1
    if value in (0.0, 1.0):
        wilson = statistics.wilson(prompts if value else 0, prompts, alpha)
        return Estimate(value, Interval(wilson.low, wilson.high, "Wilson over prompts"))
    return _mean(flags.astype(np.float64), clusters, alpha, rng, high=1.0)


def _resampled(
    kl: Array, squares: Array, clusters: NDArray[np.intp], alpha: float, rng: np.random.Generator
) -> tuple[Estimate, Estimate, Estimate]:
    """p90 and p99 of KL, and the root of the mean square, with percentile intervals of whole prompts drawn anew."""
    ends = np.cumsum(np.bincount(clusters))
    spans = [np.arange(end - size, end) for end, size in zip(ends, np.bincount(clusters), strict=True)]
    draws = max(200, min(RESAMPLES // 2, _CELLS // len(kl)))
    found = np.empty((draws, 3))
    for row in found:
        picked = np.concatenate([spans[index] for index in rng.integers(0, len(spans), len(spans))])
        row[:2] = np.quantile(kl[picked], [0.9, 0.99])
        row[2] = math.sqrt(float(squares[picked].mean()))
    low, high = np.quantile(found, [alpha / 2, 1 - alpha / 2], axis=0)
    values = (*np.quantile(kl, [0.9, 0.99]), math.sqrt(float(squares.mean())))
    if len(spans) == 1:
        low, high = np.zeros(3), np.full(3, math.inf)
    method = "cluster bootstrap" if len(spans) > 1 else "one prompt: no spread known"
    p90, p99, rms = (
        Estimate(float(value), Interval(float(a), float(b), method))
        for value, a, b in zip(values, low, high, strict=True)
    )
    return p90, p99, rms


def _bands(parts: Sequence[Positions]) -> tuple[Band, ...]:
    """Mean KL by position: 0, 1, 2 to 3, 4 to 7, … so that drift that grows along the text shows."""
    longest = max(len(part.kl) for part in parts)
    found = []
    start, end = 0, 1
    while start < longest:
        values = np.concatenate([part.kl[start:end] for part in parts])
        found.append(Band(start, min(end, longest), len(values), float(values.mean())))
        start, end = end, end * 2
    return tuple(found)


def _exp(interval: Interval) -> Interval:
    return Interval(_bounded_exp(interval.low), _bounded_exp(interval.high), interval.method)


def _bounded_exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)
