"""Exponential buckets: what a native histogram of Prometheus is made of.

Owns: the bounds, and turning dense counts into sparse spans. Never: I/O, names of metrics.

Schema 3 has eight buckets per doubling, so an upper bound is 1.0905 times the lower one and a quantile is known to 9 %.
Bucket i holds (2^((i-1)/8), 2^(i/8)]. The ledger keeps counts between the lowest and the highest bound here; what is
below is in the zero bucket (waits of 0, mostly), what is above stands in the bucket after the last.
Source: Prometheus' native histograms; the fractions are those of OpenTelemetry's exponential histogram at scale 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from registry.entries import HistogramDelta

SCHEMA: Final = 3
PER_DOUBLING: Final = 2**SCHEMA
LOWEST: Final = -20 * PER_DOUBLING
"""Index of the lowest bound: 2^-20 s, 0.95 µs."""
HIGHEST: Final = 12 * PER_DOUBLING
"""Index of the highest bound: 2^12 s, 68 minutes."""
BOUNDS_S: Final = tuple(
    math.ldexp(2.0 ** ((index % PER_DOUBLING) / PER_DOUBLING), index // PER_DOUBLING)
    for index in range(LOWEST, HIGHEST + 1)
)
ZERO_THRESHOLD: Final = BOUNDS_S[0]


@dataclass(frozen=True, slots=True)
class Sparse:
    """A histogram as the exposition has it."""

    count: int
    sum: float
    zero_count: int
    spans: tuple[tuple[int, int], ...]
    """(buckets left out since the last span, for the first one the index it begins at; length)"""
    deltas: tuple[int, ...]
    """Each bucket's count less the one's before it."""


def sparse(classic: HistogramDelta, native: HistogramDelta | None) -> Sparse:
    """The native histogram of a series, whose total is that of its classic buckets.

    `native` has its counts by BOUNDS_S; it may be younger than the series. What was counted before it stands in the
    zero bucket: a constant, which every `rate` and `increase` cancels exactly.
    """
    counts = list(native.counts) if native is not None else [0] * (len(BOUNDS_S) + 1)
    counts[0] += classic.count - sum(counts)
    spans, deltas = _spans(counts[1:])
    return Sparse(sum(counts), classic.sum, counts[0], spans, deltas)


def _spans(counts: Sequence[int]) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
    """Spans and deltas of the buckets that hold something; the first of `counts` is bucket LOWEST + 1."""
    spans: list[list[int]] = []
    deltas: list[int] = []
    end, before = 0, 0
    for index, count in enumerate(counts, LOWEST + 1):
        if count:
            if not spans or index > end:
                spans.append([index - end, 0])
            spans[-1][1] += 1
            deltas.append(count - before)
            end, before = index + 1, count
    return tuple((offset, length) for offset, length in spans), tuple(deltas)
