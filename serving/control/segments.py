"""Segment files as the ingest sees them: which there are, whose they are, what is new in one.

Owns: names, order and reading. Never: counting (the ingest does), writing to a segment (its worker alone does).
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from registry.usage import FRAME, MAGIC, CorruptSegmentError, RequestRecord, scan

READ_BYTES_MAX = 8 * 1024 * 1024
SEARCH_BYTES_MAX = 64 * 1024 * 1024
"""Read by one search through what was counted long ago."""
SUFFIX = ".seg"


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """`<worker>-<start in ns>.seg`, in order of age."""

    started_ns: int
    worker: str

    @classmethod
    def parse(cls, name: str) -> SegmentName | None:
        """The parts of a file name; None where it is not a segment's."""
        worker, dash, number = name.removesuffix(SUFFIX).rpartition("-")
        if not name.endswith(SUFFIX) or not dash or not worker or not number.isdecimal():
            return None
        return cls(int(number), worker)

    @property
    def started_at(self) -> float:
        """Unix seconds."""
        return self.started_ns / 1e9

    def __str__(self) -> str:
        return f"{self.worker}-{self.started_ns}{SUFFIX}"


@dataclass(frozen=True, slots=True)
class Reading:
    """What one look into a segment gave."""

    records: list[RequestRecord]
    offset: int
    """Bytes from the start of the file that are complete."""
    more: bool
    """There was more than one look takes."""
    torn_bytes: int
    """Bytes after the last complete record."""
    damage: str = ""
    """Why nothing after `offset` can be read; "" where all is well."""


def names(folder: Path) -> list[SegmentName]:
    """The segments in `folder`, oldest first."""
    found = (SegmentName.parse(path.name) for path in folder.iterdir())
    return sorted(name for name in found if name is not None)


def read(path: Path, offset: int, bytes_max: int = READ_BYTES_MAX) -> Reading:
    """What stands after `offset`, at most `bytes_max` of it. Damage ends the reading, with all records before it."""
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(bytes_max)
        more = len(data) == bytes_max and bool(file.read(1))
    try:
        records, used = scan(data, from_start=offset == 0)
        damage = ""
    except (CorruptSegmentError, msgspec.MsgspecError) as error:
        records, used = _before_damage(data, from_start=offset == 0)
        damage = str(error)
    return Reading(records, offset + used, more, len(data) - used, damage)


def recent(folder: Path, counted: dict[str, int], since: float) -> Iterator[RequestRecord]:
    """The counted records that ended at `since` (Unix seconds) or later; nothing is counted again."""
    for name in names(folder):
        path = folder / str(name)
        limit = counted.get(str(name), 0)
        if limit == 0 or path.stat().st_mtime < since:
            continue
        offset = 0
        while offset < limit:
            reading = read(path, offset, min(READ_BYTES_MAX, limit - offset))
            yield from (record for record in reading.records if record.ended_at >= since)
            if reading.offset == offset:
                break
            offset = reading.offset


def newest(
    folder: Path,
    counted: dict[str, int],
    wanted: Callable[[RequestRecord], bool],
    count: int,
    *,
    bytes_max: int = SEARCH_BYTES_MAX,
) -> list[RequestRecord]:
    """The `count` counted records that ended last among those `wanted`, newest first. Files are read from the one
    that was written last on, until enough is found or `bytes_max` is read: what lies further back is not found."""
    files: list[tuple[float, Path]] = []
    for name in names(folder):
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            files.append(((folder / str(name)).stat().st_mtime, folder / str(name)))
    best: list[RequestRecord] = []
    left = bytes_max
    for written_at, path in sorted(files, reverse=True):
        if left <= 0 or (len(best) >= count and best[-1].ended_at > written_at):
            break
        limit, offset = counted.get(path.name, 0), 0
        left -= limit
        while offset < limit:
            try:
                reading = read(path, offset, min(READ_BYTES_MAX, limit - offset))
            except FileNotFoundError:
                break
            found = [*best, *filter(wanted, reading.records)]
            best = heapq.nlargest(count, found, key=lambda one: one.ended_at)
            if reading.offset == offset:
                break
            offset = reading.offset
    return best


def _before_damage(data: bytes, *, from_start: bool) -> tuple[list[RequestRecord], int]:
    """The records of the frames before the first damaged one, and how many bytes they took."""
    offset = 0
    if from_start:
        if data[: len(MAGIC)] != MAGIC:
            return [], 0
        offset = len(MAGIC)
    records: list[RequestRecord] = []
    while offset + FRAME.size <= len(data):
        length, _ = FRAME.unpack_from(data, offset)
        stop = offset + FRAME.size + length
        try:
            found, used = scan(data[offset:stop], from_start=False)
        except (CorruptSegmentError, msgspec.MsgspecError):
            break
        if used != stop - offset:
            break
        records += found
        offset = stop
    return records, offset
