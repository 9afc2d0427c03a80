"""The ledger: what was used. Every total and how far the segments were read, changed together or not at all.

Owns: the ledger's tables and the one transaction that makes ingestion exactly-once. Never: reading segments, deciding
what a record counts as, prices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy import Connection, Engine

from registry.entries import (
    HOUR_S,
    CostSeconds,
    CounterKey,
    CpuSeconds,
    HeldSeconds,
    HistogramDelta,
    HistogramKey,
    Interval,
)

__all__ = [
    "HOUR_S",
    "CostSeconds",
    "CounterKey",
    "CpuSeconds",
    "HeldSeconds",
    "HistogramDelta",
    "HistogramKey",
    "Interval",
    "Ledger",
    "LedgerTx",
]


class Ledger:
    """Reads the totals, and changes them in transactions. `Ledger(registry.engine)`; thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def transaction(self) -> Iterator[LedgerTx]:
        """One write transaction: everything in it is kept, or nothing where the block raises. Writers wait in line."""
        raise NotImplementedError

    def offsets(self) -> dict[str, int]:
        """Segment name -> bytes that were counted."""
        raise NotImplementedError

    def sealed(self) -> set[str]:
        """Names of the segments that were counted to their end."""
        raise NotImplementedError

    def counters(self) -> dict[CounterKey, float]:
        raise NotImplementedError

    def histograms(self) -> dict[HistogramKey, HistogramDelta]:
        raise NotImplementedError

    def intervals(self) -> list[Interval]:
        """Intervals that wait to be settled, by start."""
        raise NotImplementedError

    def cost_seconds(self, since: float | None = None, until: float | None = None) -> list[CostSeconds]:
        """Rows of the hours that overlap [since, until), by hour."""
        raise NotImplementedError

    def held_seconds(self, since: float | None = None, until: float | None = None) -> list[HeldSeconds]:
        raise NotImplementedError

    def cpu_seconds(self, since: float | None = None, until: float | None = None) -> list[CpuSeconds]:
        raise NotImplementedError

    def cursor(self, name: str) -> float | None:
        """A named position in time, e.g. how far intervals were settled; None where it was never set."""
        raise NotImplementedError


class LedgerTx:
    """The changes of one transaction. Its reads see them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def advance(self, segment: str, offset: int, *, expected: int | None = None, sealed: bool = False) -> None:
        """The segment is counted up to `offset`. Raises ConflictError where another reader was there first: where the
        stored offset lies beyond `offset`, or is not `expected`."""
        raise NotImplementedError

    def forget(self, segments: Iterable[str]) -> None:
        """Drop the offsets of segments whose files are gone."""
        raise NotImplementedError

    def add_counters(self, deltas: Mapping[CounterKey, float]) -> None:
        raise NotImplementedError

    def add_histograms(self, deltas: Mapping[HistogramKey, HistogramDelta]) -> None:
        raise NotImplementedError

    def add_intervals(self, intervals: Iterable[Interval]) -> None:
        raise NotImplementedError

    def replace_intervals(self, intervals: Iterable[Interval]) -> None:
        """These are the only ones that still wait to be settled."""
        raise NotImplementedError

    def add_cost_seconds(self, rows: Iterable[CostSeconds]) -> None:
        raise NotImplementedError

    def add_held_seconds(self, rows: Iterable[HeldSeconds]) -> None:
        raise NotImplementedError

    def add_cpu_seconds(self, rows: Iterable[CpuSeconds]) -> None:
        raise NotImplementedError

    def set_cursor(self, name: str, value: float) -> None:
        raise NotImplementedError

    def intervals(self) -> list[Interval]:
        raise NotImplementedError

    def cursor(self, name: str) -> float | None:
        raise NotImplementedError
