"""Exemplars: for each bucket of a histogram the last traced request that fell into it.

Owns: which one that is, and how many are kept. Never: counting (observe), the text of an exposition.

They are kept in memory alone: after a restart they come again with the next traced requests.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from monitoring.observe import (
    BOUNDS,
    DURATION,
    HISTOGRAM_BOUNDS,
    ITL,
    OVERHEAD,
    QUEUE,
    SHADOW_DURATION,
    SHADOW_TTFT,
    STREAM_GAP_MAX,
    TTFT,
    endpoint_label,
    mean_gap_s,
)
from registry.usage import RequestRecord

SERIES_MAX: Final = 1000
"""Series of histograms that may have exemplars; those that come later have none."""


class Exemplar(NamedTuple):
    trace_id: str
    value: float
    at: float
    """Unix seconds at which the request ended."""


SeriesKey = tuple[str, tuple[str, ...]]
"""(metric, label values)"""


class Exemplars:
    """`add` finished requests, in one thread; `latest` may be asked in another."""

    def __init__(self, series_max: int = SERIES_MAX) -> None:
        self._series_max = series_max
        self._kept: dict[SeriesKey, dict[int, Exemplar]] = {}
        self._lock = threading.Lock()

    def add(self, records: Sequence[RequestRecord]) -> None:
        """Keep those that are traced."""
        traced = [record for record in records if record.trace_id]
        with self._lock:
            for record in traced:
                for name, labels, value in measures(record):
                    self._keep((name, labels), Exemplar(record.trace_id, value, record.ended_at))

    def latest(self) -> Mapping[SeriesKey, Mapping[int, Exemplar]]:
        """Series -> place of the bucket -> its exemplar."""
        with self._lock:
            return {key: dict(buckets) for key, buckets in self._kept.items()}

    def _keep(self, key: SeriesKey, exemplar: Exemplar) -> None:
        buckets = self._kept.get(key)
        if buckets is None:
            if len(self._kept) >= self._series_max:
                return
            buckets = self._kept[key] = {}
        place = bisect_left(BOUNDS[HISTOGRAM_BOUNDS[key[0]]], exemplar.value)
        known = buckets.get(place)
        if known is None or known.at <= exemplar.at:
            buckets[place] = exemplar


def measures(record: RequestRecord) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """Metric, label values and seconds of everything that one record adds to histograms, as `observe` adds it."""
    owner = (record.model, record.version)
    completed = record.outcome == "completed" and record.status < 400
    begun = record.streamed and record.first_token_s > 0
    if record.shadow_of:
        if completed:
            yield SHADOW_DURATION, owner, record.duration_s
        if begun:
            yield SHADOW_TTFT, owner, record.first_token_s
        return
    endpoint = endpoint_label(record.endpoint)
    if record.dispatched_s > 0:
        yield OVERHEAD, (endpoint,), record.overhead_s
    if record.priority and (record.attempts or record.queued_s):
        yield QUEUE, (record.model, record.priority), record.queued_s
    if completed and record.source == "engine":
        yield DURATION, (*owner, endpoint), record.duration_s
    if begun:
        yield TTFT, owner, record.first_token_s
        gap_s = mean_gap_s(record)
        if gap_s is not None:
            yield ITL, owner, gap_s
            yield STREAM_GAP_MAX, owner, record.gap_max_s
