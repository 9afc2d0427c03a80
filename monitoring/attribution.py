"""Whose time it was: request intervals on a device, divided among the versions that were in flight.

Owns: the sweep line, and its settlement in steps up to a watermark. Never: I/O, clocks, prices, rounding (shares are
exact fractions of a nanosecond; who stores or prices them rounds).

The method is the time-weighted in-flight share, method 2 of the cost model: while N requests are in flight on a
device, each of them owns 1/N of every moment. So shares sum to the time with at least one request in flight, whatever
the concurrency; duration x price would count that time N times over.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final, NamedTuple

from registry.entries import CostSeconds, Interval, period_end, period_of


class Key(NamedTuple):
    """Whose time it is."""

    version: str
    """`model@version`"""
    outcome: str
    """The outcome class of `monitoring.observe`."""
    key_id: str = ""
    segment: str = ""


NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Shares:
    """A device's busy time and whose it was, in nanoseconds. `share_ns` sums to `busy_ns` exactly."""

    busy_ns: int = 0
    """Time with at least one request in flight."""
    share_ns: Mapping[Key, Fraction] = field(default_factory=dict)
    """Per key the integral of n_key(t)/N(t): its part of the busy time."""
    inflight_ns: Mapping[Key, int] = field(default_factory=dict)
    """Per key the integral of n_key(t): request-seconds, which exceed the busy time where requests overlap."""

    def __add__(self, other: Shares) -> Shares:
        share: dict[Key, Fraction] = dict(self.share_ns)
        for key, value in other.share_ns.items():
            share[key] = share.get(key, Fraction(0)) + value
        inflight = dict(self.inflight_ns)
        for key, duration in other.inflight_ns.items():
            inflight[key] = inflight.get(key, 0) + duration
        return Shares(self.busy_ns + other.busy_ns, share, inflight)


@dataclass(frozen=True, slots=True)
class Settlement:
    """What one step settled, and what is still to be settled."""

    shares: Mapping[tuple[int, str], Shares]
    """(hour, device) -> shares; an hour, or a period that a changed price begins in it, is named by the Unix time of
    its start."""
    remaining: tuple[Interval, ...]
    """The parts of the intervals after the watermark: the pending ones of the next step."""
    late_ns: int
    """Time of intervals before the cursor: they came too late for an hour that was settled already, and are left out
    there so that settled figures stand. 0 where the watermark is honest."""


def nanoseconds(seconds: float) -> int:
    """Unix seconds as whole nanoseconds; monotone, so that order and equality of times survive."""
    whole = math.floor(seconds)
    return whole * NS + round((seconds - whole) * NS)  # a product would lose the last 128 ns of today's dates


def _all_nanoseconds(times: Iterable[float]) -> list[int]:
    """As `nanoseconds`, of many."""
    floor = math.floor
    return [(whole := floor(at)) * NS + round((at - whole) * NS) for at in times]


def sweep(intervals: Iterable[Interval], start: float, stop: float) -> Shares:
    """The shares of one device's `intervals` within [start, stop), Unix seconds.

    1. Every interval, cut to the window, gives two edges.
    2. Between two neighbouring edges the set in flight is constant: N requests, n_key of each key.
    3. The stretch dt adds dt to busy, dt*n_key to each key's in-flight time, dt*n_key/N to its share.

    The order of the intervals makes no difference; one that ends before it starts counts as empty. Source: processor
    sharing as in queueing theory (each of N jobs served at rate 1/N), `STATISTICS.md`, cost, attribution (2).
    """
    return _sweep(
        ((nanoseconds(i.start), nanoseconds(i.stop), _key(i)) for i in intervals),
        nanoseconds(start),
        nanoseconds(stop),
    )


def advance(pending: Sequence[Interval], cursor: float, watermark: float, cuts: Sequence[int] = ()) -> Settlement:
    """Settle what lies between `cursor` (the last watermark) and `watermark`, Unix seconds.

    The watermark is the time before which no interval is still to come; an interval that reaches beyond it is settled
    up to it and stays pending from there. Any partition of a span into steps settles the same shares as one step. A
    watermark at or before the cursor settles nothing. `cuts` (sorted, whole seconds) begin periods within hours.
    """
    low, high = nanoseconds(cursor), nanoseconds(watermark)
    if high <= low:
        return Settlement({}, tuple(pending), 0)
    spans: defaultdict[str, list[tuple[int, int, Key]]] = defaultdict(list)
    late_ns = 0
    starts = _all_nanoseconds([interval.start for interval in pending])
    stops = _all_nanoseconds([interval.stop for interval in pending])
    remaining: list[Interval] = []
    for interval, start, stop in zip(pending, starts, stops, strict=True):
        late_ns += max(0, min(stop, low) - start) if start < low else 0
        if stop > high:
            remaining.append(interval if start >= high else interval._replace(start=max(interval.start, watermark)))
        begin, end = (low if start < low else start), (high if stop > high else stop)
        if begin < end:
            spans[interval.device].append((begin, end, _key(interval)))
    shares = {
        (period, device): settled
        for device, cut in spans.items()
        for period in _periods(cut, cuts)
        if (settled := _sweep(cut, period * NS, period_end(period, cuts) * NS)).busy_ns
    }
    return Settlement(shares, tuple(remaining), late_ns)


def cost_rows(shares: Mapping[tuple[int, str], Shares]) -> list[CostSeconds]:
    """The ledger's rows of settled shares, in whole nanoseconds: each hour's rows sum to its busy time exactly."""
    rows: list[CostSeconds] = []
    for (hour, device), settled in sorted(shares.items()):
        keys = sorted(settled.share_ns)
        whole = apportion(settled.busy_ns, [settled.share_ns[key] for key in keys])
        rows.extend(
            CostSeconds(
                hour, device, key.version, key.outcome, ns / NS, settled.inflight_ns[key] / NS, key.key_id, key.segment
            )
            for key, ns in zip(keys, whole, strict=True)
        )
    return rows


def apportion(total: int, weights: Sequence[Fraction | int]) -> list[int]:
    """`total` in whole parts proportional to `weights`, summing to it exactly: the largest-remainder method (Hamilton).

    Every part is its quota rounded down or up, so it may lie one unit below what another rounding gives (a version's
    allocated line one billionth below its busy line). Ties go to the earlier one. Without any weight the first part
    takes it all. Raises ValueError for a negative weight or total, or where there is no part to take a total.
    """
    if total < 0 or any(weight < 0 for weight in weights):
        raise ValueError("neither a total nor a weight may be negative")
    if not weights:
        if total:
            raise ValueError(f"nobody to take {total}")
        return []
    scale = sum(weights)
    if not scale:
        return [total] + [0] * (len(weights) - 1)
    parts, rests = map(list, zip(*(divmod(total * weight, scale) for weight in weights), strict=True))
    order = sorted(range(len(parts)), key=lambda i: (-rests[i], i))
    for i in order[: total - sum(parts)]:
        parts[i] += 1
    return parts


def _key(interval: Interval) -> Key:
    return Key(interval.version, interval.outcome, interval.key_id, interval.segment)


def _periods(spans: Sequence[tuple[int, int, Key]], cuts: Sequence[int]) -> list[int]:
    """The starts of the periods that the spans touch."""
    found: set[int] = set()
    for start, stop, _ in spans:
        period = period_of(start // NS, cuts)
        while period * NS < stop:
            found.add(period)
            period = period_end(period, cuts)
    return sorted(found)


def _sweep(spans: Iterable[tuple[int, int, Key]], low: int, high: int) -> Shares:
    edges: list[tuple[int, int, Key]] = []
    for start, stop, key in spans:
        if max(start, low) < min(stop, high):
            edges.append((max(start, low), 1, key))
            edges.append((min(stop, high), -1, key))
    edges.sort()
    busy_ns = 0
    # Per key and level of concurrency whole nanoseconds: one division per level at the end keeps the shares exact.
    at_level: defaultdict[Key, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
    active: defaultdict[Key, int] = defaultdict(int)
    total = 0
    now = low
    for at, change, key in edges:
        if at > now:
            if total:
                stretch = at - now
                busy_ns += stretch
                for owner, count in active.items():
                    if count:
                        at_level[owner][total] += stretch * count
            now = at
        active[key] += change
        total += change
    share = {
        key: sum((Fraction(ns, level) for level, ns in levels.items()), Fraction(0)) for key, levels in at_level.items()
    }
    return Shares(busy_ns, share, {key: sum(levels.values()) for key, levels in at_level.items()})
