"""The last minute of traffic per version: what `modelyard status` shows as rates and latencies.

Owns: a bounded sliding window over request records. Never: I/O, clocks (`now` is an argument).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from monitoring.observe import mean_gap_s
from registry.usage import RequestRecord

FAULTS = ("failed", "truncated")
"""Outcomes that are the service's fault."""

_owner = attrgetter("model", "version")
_outcome = attrgetter("outcome")
_completion = attrgetter("completion_tokens")


@dataclass(frozen=True, slots=True)
class VersionRates:
    """One version within the window. None where nothing of the kind was seen."""

    requests: int
    failures: int
    """Failed and truncated ones: the service's fault."""
    requests_per_second: float
    error_rate: float | None
    """failures / requests that an engine took, 0..1; client errors, cancelled and rejected ones are no failures."""
    tokens_per_second: float
    """Completion tokens of requests that ended within the window / the window's length."""
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    itl_p50_s: float | None
    """Median over streams of a stream's mean gap between content events."""


class RecentWindow:
    """Records that ended within the last `window_s`, at most `records_max` of them. Not thread-safe."""

    def __init__(self, window_s: float = 60.0, records_max: int = 20_000) -> None:
        self.window_s = window_s
        self._records: deque[RequestRecord] = deque(maxlen=records_max)

    def add(self, records: Iterable[RequestRecord]) -> None:
        """Take in finished requests, in any order; above `records_max` the ones that came first are forgotten. Copies
        of requests (shadow arms) are no traffic."""
        self._records.extend([record for record in records if not record.shadow_of])

    def __len__(self) -> int:
        return len(self._records)

    def rates(self, now: float, *, since: float | None = None) -> dict[tuple[str, str], VersionRates]:
        """(model, label) -> rates over the window that ends at `now`.

        `since` shortens the window where counting began later (a start less than `window_s` ago), so that rates are not
        diluted by time that nobody watched. Records older than the window are dropped for good.
        """
        start = max(now - self.window_s, since if since is not None else -math.inf)
        self._forget(now - self.window_s)
        span_s = max(now - start, 1.0)
        if len(self._records) == self._records.maxlen:  # the oldest ones were pushed out: the window is shorter
            span_s = max(1e-3, min(span_s, now - min(record.ended_at for record in self._records)))
        found: defaultdict[tuple[str, str], list[RequestRecord]] = defaultdict(list)
        for owner, record in zip(map(_owner, self._records), self._records, strict=True):
            if start <= record.started_at + record.duration_s <= now:
                found[owner].append(record)
        return {owner: _rates(records, span_s) for owner, records in found.items() if owner[1]}

    def _forget(self, before: float) -> None:
        kept = [record for record in self._records if record.started_at + record.duration_s >= before]
        if len(kept) < len(self._records):
            self._records.clear()
            self._records.extend(kept)


def quantile(values: Sequence[float], q: float) -> float | None:
    """The smallest value with at least a share `q` of the values at or below it (nearest rank); None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def _rates(records: Sequence[RequestRecord], span_s: float) -> VersionRates:
    outcomes = Counter(map(_outcome, records))
    failures = sum(outcomes[name] for name in FAULTS)
    served = len(records) - outcomes["rejected"]
    first = [record.first_token_s for record in records if record.streamed and record.first_token_s > 0]
    gaps = [gap for record in records if record.streamed and (gap := mean_gap_s(record)) is not None]
    return VersionRates(
        requests=len(records),
        failures=failures,
        requests_per_second=len(records) / span_s,
        error_rate=failures / served if served else None,
        tokens_per_second=sum(map(_completion, records)) / span_s,
        ttft_p50_s=quantile(first, 0.5),
        ttft_p95_s=quantile(first, 0.95),
        itl_p50_s=quantile(gaps, 0.5),
    )
