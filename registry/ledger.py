"""The ledger: what was used. Every total and how far the segments were read, changed together or not at all.

Owns: the ledger's tables and the one transaction that makes ingestion exactly-once. Never: reading segments, deciding
what a record counts as, prices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Column, Connection, Engine, Table, delete, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from registry import schema
from registry.database import read, write
from registry.entries import (
    HOUR_S,
    CostSeconds,
    CounterKey,
    CpuSeconds,
    HeldSeconds,
    HistogramDelta,
    HistogramKey,
    Interval,
    MemorySeconds,
    PriceChange,
    SmSeconds,
    StorageSeconds,
    UsageHour,
)
from registry.errors import ConflictError

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
    "LedgerSnapshot",
    "LedgerTx",
    "MemorySeconds",
    "PriceChange",
    "SmSeconds",
    "StorageSeconds",
    "UsageHour",
]

_labels = msgspec.json.Decoder(tuple[str, ...])
_Seconds = TypeVar(
    "_Seconds", CostSeconds, HeldSeconds, CpuSeconds, SmSeconds, MemorySeconds, StorageSeconds, UsageHour
)


class Ledger:
    """Reads the totals, and changes them in transactions. `Ledger(registry.engine)`; thread-safe.

    Every method may raise DatabaseError.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def transaction(self) -> Iterator[LedgerTx]:
        """One write transaction: everything in it is kept, or nothing where the block raises. Writers wait in line."""
        with write(self._engine) as connection:
            yield LedgerTx(connection)

    def offsets(self) -> dict[str, int]:
        """Segment name -> bytes that were counted."""
        table = schema.segments
        with read(self._engine) as connection:
            return {row.name: row.offset for row in connection.execute(select(table.c.name, table.c.offset))}

    def sealed(self) -> set[str]:
        """Names of the segments that were counted to their end."""
        table = schema.segments
        with read(self._engine) as connection:
            return set(connection.scalars(select(table.c.name).where(table.c.sealed)))

    @contextmanager
    def snapshot(self) -> Iterator[LedgerSnapshot]:
        """Several reads of one state: what is written meanwhile is not seen."""
        with read(self._engine) as connection:
            yield LedgerSnapshot(connection)

    def counters(self) -> dict[CounterKey, float]:
        """The total of every counter."""
        with self.snapshot() as snapshot:
            return snapshot.counters()

    def histograms(self) -> dict[HistogramKey, HistogramDelta]:
        """The total of every histogram."""
        with read(self._engine) as connection:
            return _histograms(connection)

    def intervals(self) -> list[Interval]:
        """Intervals that wait to be settled, by start."""
        with self.snapshot() as snapshot:
            return snapshot.intervals()

    def cost_seconds(self, since: float | None = None, until: float | None = None) -> list[CostSeconds]:
        """Rows of the hours that overlap [since, until), by hour. None leaves an end open."""
        with self.snapshot() as snapshot:
            return snapshot.cost_seconds(since, until)

    def held_seconds(self, since: float | None = None, until: float | None = None) -> list[HeldSeconds]:
        """Rows of the hours that overlap [since, until), by hour. None leaves an end open."""
        with self.snapshot() as snapshot:
            return snapshot.held_seconds(since, until)

    def cpu_seconds(self, since: float | None = None, until: float | None = None) -> list[CpuSeconds]:
        """Rows of the hours that overlap [since, until), by hour. None leaves an end open."""
        with self.snapshot() as snapshot:
            return snapshot.cpu_seconds(since, until)

    def usage_hours(self, since: float | None = None, until: float | None = None) -> list[UsageHour]:
        """Rows of the hours that overlap [since, until), by hour. None leaves an end open."""
        with self.snapshot() as snapshot:
            return snapshot.usage_hours(since, until)

    def price_changes(self) -> list[PriceChange]:
        """Every change, oldest first."""
        with self.snapshot() as snapshot:
            return snapshot.price_changes()

    def cursor(self, name: str) -> float | None:
        """A named position in time, e.g. how far intervals were settled; None where it was never set."""
        with self.snapshot() as snapshot:
            return snapshot.cursor(name)


class LedgerSnapshot:
    """Reads within one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def counters(self) -> dict[CounterKey, float]:
        """The total of every counter."""
        rows = self._connection.execute(select(schema.counters))
        return {CounterKey(name, _labels.decode(labels)): value for name, labels, value in rows}

    def intervals(self) -> list[Interval]:
        """Intervals that wait to be settled, by start."""
        table = schema.intervals
        columns = [table.c[name] for name in Interval._fields]
        rows = self._connection.execute(select(*columns).order_by(table.c.start, table.c.id))
        return list(map(Interval._make, rows.fetchall()))

    def cost_seconds(self, since: float | None = None, until: float | None = None) -> list[CostSeconds]:
        """As `Ledger.cost_seconds`."""
        return self._seconds(schema.cost_seconds, CostSeconds, since, until)

    def held_seconds(self, since: float | None = None, until: float | None = None) -> list[HeldSeconds]:
        """As `Ledger.held_seconds`."""
        return self._seconds(schema.held_seconds, HeldSeconds, since, until)

    def cpu_seconds(self, since: float | None = None, until: float | None = None) -> list[CpuSeconds]:
        """As `Ledger.cpu_seconds`."""
        return self._seconds(schema.cpu_seconds, CpuSeconds, since, until)

    def sm_seconds(self, since: float | None = None, until: float | None = None) -> list[SmSeconds]:
        """Rows of the hours that overlap [since, until), by hour. None leaves an end open."""
        return self._seconds(schema.sm_seconds, SmSeconds, since, until)

    def memory_seconds(self, since: float | None = None, until: float | None = None) -> list[MemorySeconds]:
        """Rows of the hours that overlap [since, until), by hour. None leaves an end open."""
        return self._seconds(schema.memory_seconds, MemorySeconds, since, until)

    def storage_seconds(self, since: float | None = None, until: float | None = None) -> list[StorageSeconds]:
        """Rows of the hours that overlap [since, until), by hour. None leaves an end open."""
        return self._seconds(schema.storage_seconds, StorageSeconds, since, until)

    def usage_hours(self, since: float | None = None, until: float | None = None) -> list[UsageHour]:
        """As `Ledger.usage_hours`."""
        return self._seconds(schema.usage_hours, UsageHour, since, until)

    def labels_of(self, hour: int) -> set[tuple[str, str]]:
        """(key, segment) pairs that usage of the hour tells apart."""
        table = schema.usage_hours
        query = select(table.c.key_id, table.c.segment).where(table.c.hour == hour).distinct()
        return {(key_id, segment) for key_id, segment in self._connection.execute(query)}

    def first_hour(self) -> int | None:
        """The first hour in which a device was held or used, or a request ended; None in an empty ledger."""
        tables = (schema.cost_seconds, schema.held_seconds, schema.usage_hours)
        hours = [self._connection.scalar(select(func.min(table.c.hour))) for table in tables]
        return min((hour for hour in hours if hour is not None), default=None)

    def phases_before(self, hour: int) -> dict[str, tuple[float, float, float, float]]:
        """`model@version` -> prefill seconds and tokens, decode seconds and tokens of all hours before this one."""
        table = schema.usage_hours
        sums = (func.sum(table.c[name]) for name in ("prefill_s", "prefill_tokens", "decode_s", "decode_tokens"))
        query = select(table.c.version, *sums).where(table.c.hour < hour).group_by(table.c.version)
        return {
            row[0]: (float(row[1]), float(row[2]), float(row[3]), float(row[4]))
            for row in self._connection.execute(query)
        }

    def price_changes(self) -> list[PriceChange]:
        """As `Ledger.price_changes`."""
        table = schema.price_changes
        return [PriceChange(*row) for row in self._connection.execute(select(table).order_by(table.c.at))]

    def cursor(self, name: str) -> float | None:
        """A named position in time; None where it was never set."""
        return self._connection.scalar(select(schema.cursors.c.value).where(schema.cursors.c.name == name))

    def _seconds(self, table: Table, entry: type[_Seconds], since: float | None, until: float | None) -> list[_Seconds]:
        query = select(table).order_by(*table.primary_key.columns)
        if since is not None:
            query = query.where(table.c.hour >= since // HOUR_S * HOUR_S)
        if until is not None:
            query = query.where(table.c.hour < until)
        return [entry(*row) for row in self._connection.execute(query)]


class LedgerTx(LedgerSnapshot):
    """The changes of one transaction. Its reads see them."""

    def advance(self, segment: str, offset: int, *, expected: int | None = None, sealed: bool = False) -> None:
        """The segment is counted up to `offset`, and to its end where `sealed`.

        Raises ConflictError, which undoes the transaction, where another reader was there first: where the stored
        offset lies beyond `offset`, or is not `expected` (0 for a segment that was never read).
        """
        table = schema.segments
        stored = self._connection.scalar(select(table.c.offset).where(table.c.name == segment)) or 0
        if stored > offset or (expected is not None and stored != expected):
            raise ConflictError(
                f"segment {segment} is counted up to byte {stored}, not {offset if expected is None else expected}",
                remedy="make sure that one control plane alone uses this state directory",
            )
        self._put(table, [{"name": segment, "offset": offset, "sealed": sealed}])

    def forget(self, segments: Iterable[str]) -> None:
        """Drop the offsets of segments whose files are gone."""
        for segment in segments:
            self._connection.execute(delete(schema.segments).where(schema.segments.c.name == segment))

    def add_counters(self, deltas: Mapping[CounterKey, float]) -> None:
        """Add to counters, which begin at 0. Raises ValueError for a delta below 0: counters only rise."""
        if any(delta < 0 for delta in deltas.values()):
            raise ValueError("a counter cannot fall")
        self._add(
            schema.counters,
            [{"name": key.name, "labels": _encode(key.labels), "value": delta} for key, delta in deltas.items()],
        )

    def add_histograms(self, deltas: Mapping[HistogramKey, HistogramDelta]) -> None:
        """Add observations. Raises ValueError where a series is given another number of buckets than it has."""
        known = _histograms(self._connection, {key.name for key in deltas})
        rows: list[dict[str, Any]] = []
        for key, delta in deltas.items():
            before = known.get(key, HistogramDelta([0] * len(delta.counts), 0.0))
            if len(before.counts) != len(delta.counts):
                raise ValueError(f"{key} has {len(before.counts)} buckets, not {len(delta.counts)}")
            counts = [old + new for old, new in zip(before.counts, delta.counts, strict=True)]
            values = {"counts": counts, "sum": before.sum + delta.sum}
            rows.append({"name": key.name, "labels": _encode(key.labels), "bounds": key.bounds, **values})
        self._put(schema.histograms, rows)

    def add_intervals(self, intervals: Iterable[Interval]) -> None:
        """Intervals that wait to be settled."""
        rows = list(intervals)
        if not rows:
            return
        statement = insert(schema.intervals).values(dict.fromkeys(Interval._fields))
        compiled = statement.compile(dialect=self._connection.dialect)
        values: Any = rows if compiled.positional else [row._asdict() for row in rows]
        self._connection.exec_driver_sql(str(compiled), values)  # a third of what parameters by name cost

    def replace_intervals(self, intervals: Iterable[Interval]) -> None:
        """These are the only ones that still wait to be settled."""
        self._connection.execute(delete(schema.intervals))
        self.add_intervals(intervals)

    def add_cost_seconds(self, rows: Iterable[CostSeconds]) -> None:
        """Add to the rows of the same hour, device, version, outcome, key and segment."""
        self._add(schema.cost_seconds, [asdict(row) for row in rows])

    def add_held_seconds(self, rows: Iterable[HeldSeconds]) -> None:
        """Add to the rows of the same hour and device."""
        self._add(schema.held_seconds, [asdict(row) for row in rows])

    def add_cpu_seconds(self, rows: Iterable[CpuSeconds]) -> None:
        """Add to the rows of the same hour, device and version."""
        self._add(schema.cpu_seconds, [asdict(row) for row in rows])

    def add_sm_seconds(self, rows: Iterable[SmSeconds]) -> None:
        """Add to the rows of the same hour, device and version."""
        self._add(schema.sm_seconds, [asdict(row) for row in rows])

    def add_memory_seconds(self, rows: Iterable[MemorySeconds]) -> None:
        """Add to the rows of the same hour, device and version."""
        self._add(schema.memory_seconds, [asdict(row) for row in rows])

    def add_storage_seconds(self, rows: Iterable[StorageSeconds]) -> None:
        """Add to the rows of the same hour and version."""
        self._add(schema.storage_seconds, [asdict(row) for row in rows])

    def add_usage(self, rows: Iterable[UsageHour]) -> None:
        """Add to the rows of the same hour, device, version, outcome, key and segment."""
        self._add(schema.usage_hours, [asdict(row) for row in rows])

    def record_prices(self, change: PriceChange) -> None:
        """These prices are in force from `change.at` on. Raises ValueError where later ones are recorded already."""
        known = self.price_changes()
        if known and known[-1].at > change.at:
            raise ValueError(f"prices from {known[-1].at} on are recorded: a change at {change.at} would rewrite them")
        self._put(schema.price_changes, [{"at": change.at, "prices": dict(change.prices)}])

    def set_cursor(self, name: str, value: float) -> None:
        """Move a named position in time, forwards or backwards."""
        self._put(schema.cursors, [{"name": name, "value": value}])

    def _add(self, table: Table, rows: list[dict[str, Any]]) -> None:
        """Insert rows; where one with the same key is there, add the values to its own."""
        self._upsert(table, rows, lambda column, offered: column + offered)

    def _put(self, table: Table, rows: list[dict[str, Any]]) -> None:
        """Insert rows; one with the same key is replaced."""
        self._upsert(table, rows, lambda _column, offered: offered)

    def _upsert(self, table: Table, rows: list[dict[str, Any]], merge: Callable[[Column[Any], Any], Any]) -> None:
        if not rows:
            return
        # ON CONFLICT is the one statement here that SQLAlchemy has per dialect only; both dialects spell it alike.
        dialect = postgresql if self._connection.dialect.name == "postgresql" else sqlite
        statement = dialect.insert(table)
        values = [column for column in table.columns if not column.primary_key]
        merged = {column.name: merge(column, statement.excluded[column.name]) for column in values}
        keys = list(table.primary_key.columns)
        self._connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=merged), rows)


def _histograms(connection: Connection, names: set[str] | None = None) -> dict[HistogramKey, HistogramDelta]:
    query = select(schema.histograms)
    if names is not None:
        query = query.where(schema.histograms.c.name.in_(names))
    rows = connection.execute(query)
    return {
        HistogramKey(name, _labels.decode(labels), bounds): HistogramDelta(counts, total)
        for name, labels, bounds, counts, total in rows
    }


def _encode(labels: tuple[str, ...]) -> str:
    return msgspec.json.encode(labels).decode()
