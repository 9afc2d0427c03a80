"""What the workers did, counted exactly once: from segment files into the ledger.

Owns: how far each segment is read, when it is sealed, set aside or deleted, and the watermark up to which time on the
devices is settled. Never: what a record counts as (monitoring.observe), SQL, talking to workers.

Exactly once: the offset of a segment moves in the transaction that adds what its records count as. Killed at any point,
the next process goes on from an offset that fits the totals. A segment is sealed when nobody can write to it any more
and it is read to its end; a torn last frame of a killed worker is a request that nobody finished counting, and is left.

The watermark is the time before which no record is still to come: the least of the live workers' oldest requests, each
taken only once its segment is read as far as the worker had written when it said so.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from monitoring import settle
from monitoring.sampler import Sums
from monitoring.usage import Labels, Slo
from registry.ledger import Ledger
from registry.usage import RequestRecord
from serving.control import segments
from serving.control.segments import Reading, SegmentName
from serving.router.protocol import Stats

log = logging.getLogger("modelyard.ingest")

SETTLE_S = 5.0
"""How often intervals are settled where nobody asks; until then they are the unsettled line of a bill."""
GRACE_S = 2.0
"""A segment younger than this is never sealed: its worker may have started after the workers were looked at."""
CLOCK_S = 1.0
"""How far a process's start, as the kernel tells it, and the time in its segment's name may be apart."""
PRUNE_S = 60.0


@dataclass(frozen=True, slots=True)
class Writer:
    """A worker that may still write."""

    worker: str
    started_at: float
    """Unix seconds at which its process started."""
    stats: Stats | None
    """What it said last; None where it said nothing since it was connected."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A segment that was set aside."""

    segment: str
    message: str


@dataclass(slots=True)
class Report:
    """What one step did."""

    records: int = 0
    watermark: float = 0.0
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Retention:
    """How long segments are kept after they were counted."""

    age_s: float = 30 * 86400.0
    bytes_max: int = 1024**3


class Meter(Protocol):
    """What devices were held for, until it is written down (`monitoring.sampler.Sampler`)."""

    def peek(self) -> Sums: ...

    def settled(self, sums: Sums) -> None: ...


class Ingest:
    """Follows the segments in `folder`. Blocking: a step runs in a thread, and a second one waits for it (whoever
    awaits a thread may be cancelled; the thread goes on).

    `device_of` names the device of a replica (None: not one of ours). `on_records` gets the records of each committed
    step, e.g. for the window of recent traffic. `slos` are the service levels by model, `stored` what artifacts take on
    disk by `model@version`.
    """

    def __init__(
        self,
        folder: Path,
        ledger: Ledger,
        *,
        device_of: Callable[[str], str | None],
        on_records: Callable[[Sequence[RequestRecord]], None] = lambda records: None,
        meter: Meter | None = None,
        slos: Callable[[], Mapping[str, Slo]] = dict,
        stored: Callable[[], Mapping[str, float]] = dict,
        retention: Retention | None = None,
    ) -> None:
        self._folder = folder
        self._ledger = ledger
        self._device_of = device_of
        self._on_records = on_records
        self.meter = meter
        self._slos = slos
        self._stored = stored
        self._labels = Labels()
        self._retention = retention or Retention()
        self._offsets = ledger.offsets()
        self._sealed = ledger.sealed()
        self._marks: dict[tuple[str, float], float] = {}
        self._stepping = threading.Lock()
        self._pending = True
        self._offered: Sums | None = None
        self._settled_at = 0.0
        self._pruned_at = 0.0
        self.problems: list[Problem] = []
        """Every segment set aside since the start."""

    def recent(self, since: float) -> list[RequestRecord]:
        """Counted records that ended at `since` or later, to fill the window after a restart."""
        return list(segments.recent(self._folder, self._offsets, since))

    def newest(self, wanted: Callable[[RequestRecord], bool], count: int) -> list[RequestRecord]:
        """Counted records that segments still hold, newest first (see `segments.newest`)."""
        return segments.newest(self._folder, self._offsets, wanted, count)

    def step(self, writers: Sequence[Writer], now: float, *, settle_now: bool = False) -> Report:
        """Count what is new. `writers` and `now` were taken before this call; `settle_now` settles time at once.

        Raises what the ledger raises; nothing is counted twice for it.
        """
        with self._stepping:
            return self._step(writers, now, settle_now)

    def _step(self, writers: Sequence[Writer], now: float, settle_now: bool) -> Report:
        report = Report()
        try:
            while self._read_once(writers, now, report):
                pass
            report.watermark = self._watermark(writers, now)
            self._settle(report.watermark, now, settle_now)
            if abs(now - self._pruned_at) >= PRUNE_S:
                self._pruned_at = now
                self.prune(now)
        except Exception:
            # Whether the transaction was kept is not known: go on from what the ledger says.
            self._offsets, self._sealed = self._ledger.offsets(), self._ledger.sealed()
            self._pending = True
            raise
        return report

    def _read_once(self, writers: Sequence[Writer], now: float, report: Report) -> bool:
        """One look into every open segment and one transaction. Returns whether there is more to read."""
        readings: dict[SegmentName, Reading] = {}
        sealing: set[SegmentName] = set()
        for name in segments.names(self._folder):
            if str(name) in self._sealed:
                continue
            reading = segments.read(self._folder / str(name), self._offsets.get(str(name), 0))
            finished = not reading.more and not _may_grow(name, writers, now)
            if reading.damage or finished:
                sealing.add(name)
            if reading.offset != self._offsets.get(str(name), 0) or name in sealing:
                readings[name] = reading
        if not readings:
            return False
        records = [record for reading in readings.values() for record in reading.records]
        with self._ledger.transaction() as tx:
            for name, reading in readings.items():
                before = self._offsets.get(str(name), 0)
                tx.advance(str(name), reading.offset, expected=before, sealed=name in sealing)
            settle.count(tx, records, self._device_of, slos=self._slos(), labels=self._labels)
        self._offsets.update((str(name), reading.offset) for name, reading in readings.items())
        self._sealed.update(str(name) for name in sealing)
        report.records += len(records)
        for name, reading in readings.items():
            self._look_back(name, reading, name in sealing, report)
        if records:
            self._pending = True
            self._on_records(records)
        return any(reading.more and not reading.damage for reading in readings.values())

    def _look_back(self, name: SegmentName, reading: Reading, sealed: bool, report: Report) -> None:
        """Report what could not be counted, and set a damaged segment aside."""
        if reading.damage:
            problem = Problem(str(name), f"{reading.damage}; the records before that are counted, it is set aside")
            log.error("segment %s: %s", problem.segment, problem.message)
            report.problems.append(problem)
            self.problems.append(problem)
        elif sealed and reading.torn_bytes:
            log.warning("segment %s ends in %d bytes of a torn record", name, reading.torn_bytes)

    def _watermark(self, writers: Sequence[Writer], now: float) -> float:
        """The time before which no record is still to come. Every segment is read to its present end."""
        marks: dict[tuple[str, float], float] = {}
        for writer in writers:
            key = (writer.worker, writer.started_at)
            mark = self._marks.get(key, writer.started_at)
            stats = writer.stats
            if stats is not None and (
                stats.segment in self._sealed or self._offsets.get(stats.segment, 0) >= stats.flushed_bytes
            ):
                mark = max(mark, stats.oldest_started_at)
            marks[key] = mark
        self._marks = marks
        return min([now, *marks.values()])

    def _settle(self, watermark: float, now: float, at_once: bool) -> None:
        """Divide the devices' time up to the watermark, and write down how long they were held."""
        if abs(now - self._settled_at) < SETTLE_S and not at_once:  # a clock that was set back holds up nothing
            return
        self._take_back()
        sums = self.meter.peek() if self.meter is not None else Sums()
        if not (self._pending or sums.held or sums.cpu):
            return
        self._offered = sums
        stored = self._stored()
        with self._ledger.transaction() as tx:
            settle.add(tx, sums)
            settle.store(tx, stored, now)
            settlement = settle.settle(tx, watermark)
        self._take_back()
        self._settled_at = now
        self._pending = bool(settlement.remaining)
        if settlement.late_ns:
            log.warning("%.3f s of requests came too late to be settled", settlement.late_ns / 1e9)

    def _take_back(self) -> None:
        """Tell the meter what is written down: what was offered last, if the ledger has it. It may have it although
        its transaction seemed to fail."""
        if self.meter is not None and self._offered is not None:
            if self._ledger.cursor(settle.HELD) == self._offered.until:
                self.meter.settled(self._offered)
            self._offered = None

    def prune(self, now: float) -> list[str]:
        """Delete counted segments that are too old or too many, oldest first. Returns their names.

        A file goes before its offset does: in the other order a crash between would count it again.
        """
        present = {str(name): name for name in segments.names(self._folder)}
        sealed = [name for text, name in present.items() if text in self._sealed]
        sizes = {name: (self._folder / str(name)).stat() for name in sealed}
        total = sum(stat.st_size for stat in sizes.values())
        deleted: list[str] = []
        for name in sorted(sealed):
            stat = sizes[name]
            if total <= self._retention.bytes_max and now - stat.st_mtime <= self._retention.age_s:
                continue
            (self._folder / str(name)).unlink(missing_ok=True)
            total -= stat.st_size
            deleted.append(str(name))
        gone = [text for text in self._offsets if text not in present or text in deleted]
        if gone:
            with self._ledger.transaction() as tx:
                tx.forget(gone)
            for text in gone:
                self._offsets.pop(text, None)
                self._sealed.discard(text)
        return deleted


def _may_grow(name: SegmentName, writers: Iterable[Writer], now: float) -> bool:
    """Whether somebody may still write to the segment.

    1. A young one may belong to a worker that started after the workers were looked at.
    2. A live worker writes to its current segment or to one that it has begun since; while that is not known, to any
       that began after it did. What it says itself comes first: its clock may have been set back since it started.
    """
    if now - name.started_at < GRACE_S:
        return True
    for writer in writers:
        if writer.worker != name.worker:
            continue
        current = SegmentName.parse(writer.stats.segment) if writer.stats is not None else None
        if name >= current if current is not None else name.started_at >= writer.started_at - CLOCK_S:
            return True
    return False
