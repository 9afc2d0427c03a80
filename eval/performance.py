"""How fast a run's answers came and what they took.

Owns: the figures of one run's timings and token counts. Never: I/O, clocks, prices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Timed(Protocol):
    """What is needed of a sample."""

    error: str
    ttft_s: float | None
    latency_s: float
    started_at: float
    prompt_tokens: int
    completion_tokens: int
    attempts: int
    cached: bool


@dataclass(frozen=True, slots=True)
class Performance:
    """Seconds and tokens of the samples of a run that the engine answered."""

    n: int
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    latency_p50_s: float | None
    latency_p95_s: float | None
    latency_total_s: float
    busy_s: float
    """Time with at least one request of the run in flight, as the client saw it."""
    prompt_tokens: int
    completion_tokens: int
    retries: int

    @property
    def busy_s_per_1k(self) -> float | None:
        """Busy seconds per 1,000 answered requests."""
        return 1000 * self.busy_s / self.n if self.n else None


def measure(samples: Iterable[Timed]) -> Performance:
    """The figures of a run; percentiles by linear interpolation. Answers from the response cache took no time."""
    answered = [sample for sample in samples if not sample.error and not sample.cached]
    first = [sample.ttft_s for sample in answered if sample.ttft_s is not None and not np.isnan(sample.ttft_s)]
    total = [sample.latency_s for sample in answered]
    return Performance(
        n=len(answered),
        ttft_p50_s=_quantile(first, 0.5),
        ttft_p95_s=_quantile(first, 0.95),
        latency_p50_s=_quantile(total, 0.5),
        latency_p95_s=_quantile(total, 0.95),
        latency_total_s=float(sum(total)),
        busy_s=busy_seconds([(one.started_at, one.started_at + one.latency_s) for one in answered]),
        prompt_tokens=sum(sample.prompt_tokens for sample in answered),
        completion_tokens=sum(sample.completion_tokens for sample in answered),
        retries=sum(sample.attempts - 1 for sample in answered),
    )


def busy_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of the spans."""
    busy, reached = 0.0, float("-inf")
    for start, stop in sorted(spans):
        busy += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return busy


def busy_shares(spans: Sequence[tuple[float, float]]) -> list[float]:
    """Each span's share of the busy time: a moment with N spans open belongs 1/N to each. Sums to busy_seconds.

    The same division as the yard's own (monitoring.attribution), of the run's requests alone.
    """
    edges = sorted(
        (at, starts, index)
        for index, (start, stop) in enumerate(spans)
        if stop > start
        for at, starts in ((start, True), (stop, False))
    )
    shares, begun_at = [0.0] * len(spans), [0.0] * len(spans)
    so_far, reached, opened = 0.0, 0.0, 0
    for at, starts, index in edges:
        if opened:
            so_far += (at - reached) / opened
        reached = at
        if starts:
            begun_at[index] = so_far
        else:
            shares[index] = so_far - begun_at[index]
        opened += 1 if starts else -1
    return shares


def _quantile(values: Sequence[float], share: float) -> float | None:
    return float(np.quantile(values, share)) if values else None
