"""The values of the ledger: counters, histograms, intervals in flight, and seconds by hour.

Owns: their shape. Never: I/O, SQL, clocks. Times are Unix seconds; an hour is the Unix second at which it starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

HOUR_S: Final = 3600


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


@dataclass(frozen=True, slots=True)
class CostSeconds:
    """What a version and outcome had of a device's busy time within one hour."""

    hour: int
    device: str
    version: str
    outcome: str
    busy_share_s: float
    """Its share of the seconds with at least one request in flight; the shares sum to the device's busy seconds."""
    inflight_s: float
    """Request-seconds: the sum of the times in flight."""


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
