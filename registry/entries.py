"""The values of the ledger: counters, histograms, intervals in flight, and seconds and usage by hour.

Owns: their shape. Never: I/O, SQL, clocks. Times are Unix seconds; an hour is the Unix second at which it starts. A
changed price begins a period of its own within its hour (`period_of`), named by the second at which it starts too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

HOUR_S: Final = 3600
OTHER: Final = "other"
"""What stands for keys and segments beyond the number that is told apart."""


class CounterKey(NamedTuple):
    """One time series of a counter: the metric's name and its label values, in the metric's own order."""

    name: str
    labels: tuple[str, ...] = ()


class HistogramKey(NamedTuple):
    """One time series of a histogram. `bounds` names the bucket bounds, so that other bounds are another series."""

    name: str
    labels: tuple[str, ...]
    bounds: str


@dataclass(frozen=True, slots=True)
class HistogramDelta:
    """Observations of a histogram: a change when written, the total when read."""

    counts: Sequence[int]
    """Per bucket, not cumulative; the last one is above every bound."""
    sum: float

    @property
    def count(self) -> int:
        return sum(self.counts)


class Interval(NamedTuple):
    """One request in flight on a device, from when it was handed to the engine until it ended."""

    device: str
    version: str
    """`assistant@v2`"""
    outcome: str
    start: float
    stop: float
    key_id: str = ""
    """The API key that asked; "" without one, `OTHER` beyond the number of keys that are told apart."""
    segment: str = ""
    """The segment of the route; "" for the route's own arms."""


@dataclass(frozen=True, slots=True)
class CostSeconds:
    """What a version, outcome, key and segment had of a device's busy time within one hour."""

    hour: int
    device: str
    version: str
    outcome: str
    busy_share_s: float
    """Its share of the seconds with at least one request in flight; the shares sum to the device's busy seconds."""
    inflight_s: float
    """Request-seconds: the sum of the times in flight."""
    key_id: str = ""
    segment: str = ""


@dataclass(frozen=True, slots=True)
class HeldSeconds:
    """How long a device was held within one hour, and the energy it took."""

    hour: int
    device: str
    held_s: float
    energy_j: float = 0.0
    metered_s: float = 0.0
    """The part of `held_s` for which energy was read; 0 where the device has no meter."""


@dataclass(frozen=True, slots=True)
class CpuSeconds:
    """CPU time that the engines of a version took on a device within one hour."""

    hour: int
    device: str
    version: str
    cpu_s: float


@dataclass(frozen=True, slots=True)
class SmSeconds:
    """Seconds of a GPU's multiprocessors that the engines of a version had within one hour, as the driver lists them
    per process: the sum of utilisation x time."""

    hour: int
    device: str
    version: str
    sm_s: float


@dataclass(frozen=True, slots=True)
class MemorySeconds:
    """Memory that the engines of a version held on a device within one hour, asked or not: the sum of bytes x time."""

    hour: int
    device: str
    version: str
    byte_s: float


@dataclass(frozen=True, slots=True)
class StorageSeconds:
    """Bytes of artifacts that a version kept on disk within one hour x time; shared files are divided evenly."""

    hour: int
    version: str
    byte_s: float


@dataclass(frozen=True, slots=True)
class UsageHour:
    """What requests that ended within one hour did. Rejected ones, which no version saw, are in none."""

    hour: int
    device: str
    """Where its engine ran; "" where that is none of ours (external and hosted engines, kept answers)."""
    version: str
    outcome: str
    """As on bills; of copies (`shadow`) only those that were answered are in `requests`."""
    key_id: str
    segment: str
    requests: int = 0
    judged: int = 0
    """Those that count for the model's service level; 0 where it has none."""
    good: int = 0
    """Of these, those within its limits."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Part of `prompt_tokens`."""
    completion_tokens: int = 0
    prefill_s: float = 0.0
    """Of streams with usage: hand-over to first token, and the uncached prompt tokens that it took."""
    prefill_tokens: int = 0
    decode_s: float = 0.0
    """First to last token, and the tokens after the first."""
    decode_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PriceChange:
    """Prices that are in force from a moment on."""

    at: int
    """A whole Unix second: periods of the ledger begin there."""
    prices: Mapping[str, Any]
    """The fields of `monitoring.cost.Prices`."""


def period_of(at: float, cuts: Sequence[int] = ()) -> int:
    """The start of the period that holds `at`: of its hour, or the last of the sorted `cuts` (whole seconds at which
    prices changed) that lies within the hour and not after `at`."""
    hour = int(at // HOUR_S) * HOUR_S
    place = bisect_right(cuts, at)
    return max(hour, cuts[place - 1]) if place else hour


def period_end(start: int, cuts: Sequence[int] = ()) -> int:
    """Where the period ends that begins at `start`: at the next cut, or with the hour."""
    hour_end = start // HOUR_S * HOUR_S + HOUR_S
    place = bisect_right(cuts, start)
    return min(hour_end, cuts[place]) if place < len(cuts) else hour_end


def periods(start: float, stop: float, cuts: Sequence[int] = ()) -> Iterator[tuple[int, float]]:
    """(period, seconds) of [start, stop), each period named by its start."""
    period = period_of(start, cuts)
    while period < stop:
        end = period_end(period, cuts)
        seconds = min(stop, end) - max(start, period)
        if seconds > 0:
            yield period, seconds
        period = end
