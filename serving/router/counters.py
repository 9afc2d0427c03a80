"""Numbers that the router's workers on one machine share: one file, mapped into each of them.

Owns: the file's layout, which worker writes where, and who of them is alive. Never: what a number means (`quota`,
`admission`), waiting for another worker on the request path.

The file is a header and one column per worker; a column holds a row of float64 cells for every API key and every model.
Each cell has one writer, the worker that holds the column, so nothing is ever locked to count. A worker holds its
column by a lock on one byte of the file, which the kernel drops when the process ends, however it ends: a column that
nobody holds belongs to a worker that is gone. What such a one had in flight no longer counts; what it used still does,
so budgets outlive workers and restarts of the whole yard. The next worker goes on in the lowest column that is free.

A row belongs to the key or model whose tag is in its first cell; with another tag it is read as zeros, so a key's place
can be given to another one later.

    header   4096 bytes: magic, columns ever used, the machine's boot, tags of the models in the order of their rows
    column   KEYS rows of KEY_CELLS cells, MODELS rows of MODEL_CELLS cells
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import inf
from pathlib import Path
from typing import Final

KEYS: Final = 4096
KEY_CELLS: Final = 12
KEY_GAUGES: Final = 1
"""Cells after the tag that say what is so now; they are 0 in a worker that begins."""
KEY_CLOCKS: Final = (4, 7)
"""Cells that tell of the machine's monotonic clock and mean nothing after a boot."""
MODELS: Final = 256
MODEL_CELLS: Final = 4
MODEL_GAUGES: Final = 3
COLUMNS: Final = 128
CELL_BYTES: Final = 8

HEADER_CELLS: Final = 512
MODELS_AT: Final = KEYS * KEY_CELLS
"""Where a column's rows of models begin."""
COLUMN_CELLS: Final = MODELS_AT + MODELS * MODEL_CELLS
MAGIC: Final = float(int.from_bytes(b"MYCNT1", "big"))
MAGIC_CELL, USED_CELL, BOOT_CELL, TAGS_CELL = 0, 1, 2, 16
HEADER_LOCK: Final = COLUMNS
"""The byte that is locked while the header changes; the bytes before it are the columns'."""


class CountersError(Exception):
    """The file cannot be used: its disk is full, or it is not of this version."""


def tag_of(name: str) -> float:
    """A number that tells keys and models apart, exact as a float and never 0."""
    return float(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big") + 1)


class Counters:
    """One worker's view of `cells` (float64). `is_held` says whether a worker holds a column; `changing` is entered
    while the header changes."""

    def __init__(
        self,
        cells: memoryview[float],
        column: int,
        is_held: Callable[[int], bool],
        changing: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.cells = cells
        self.column = column
        self._is_held = is_held
        self._changing = changing
        self._models: dict[float, int] = {}
        self._spare: Counters | None = None
        self._columns = 0
        self.mine = _start(column)
        self.others: tuple[int, ...] = ()
        """Where the columns of all other workers begin, those that are gone included."""
        self.running: tuple[int, ...] = ()
        """Where those of other workers that are alive begin."""
        self._clear_gauges()
        self.refresh()

    @classmethod
    def private(cls) -> Counters:
        """Counters of one worker alone, in its own memory."""
        memory = mmap.mmap(-1, (HEADER_CELLS + COLUMN_CELLS) * CELL_BYTES)
        cells = memoryview(memory).cast("d")
        cells[USED_CELL] = 1.0
        return cls(cells, 0, lambda column: False, nullcontext)

    @classmethod
    def open(cls, path: Path) -> Counters:
        """Take a column of the file, which is made where it is missing. Raises CountersError or OSError."""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # open, and locking, until the process ends

        @contextmanager
        def changing() -> Iterator[None]:
            fcntl.lockf(file, fcntl.LOCK_EX, 1, HEADER_LOCK)
            try:
                yield
            finally:
                fcntl.lockf(file, fcntl.LOCK_UN, 1, HEADER_LOCK)

        try:
            with changing():
                cells, column = _claim(file, path)
        except BaseException:
            os.close(file)
            raise
        return cls(cells, column, lambda other: not _lock(file, other, keep=False), changing)

    def key(self, key_id: str, slot: int) -> Row:
        """The cells of an API key whose place is `slot`. One beyond KEYS is counted by this worker alone."""
        if slot >= KEYS:
            return self._alone().key(key_id, slot - KEYS)
        return Row(self, slot * KEY_CELLS, KEY_CELLS, tag_of(key_id))

    def model(self, name: str) -> Row:
        """The cells of a model, which gets a place where it has none. Beyond MODELS, as beyond KEYS."""
        tag = tag_of(name)
        if tag not in self._models:
            with self._changing():
                self._place(tag)
        place = self._models.get(tag)
        if place is None:
            return self._alone().model(name)
        return Row(self, MODELS_AT + place * MODEL_CELLS, MODEL_CELLS, tag)

    def _alone(self) -> Counters:
        self._spare = self._spare or Counters.private()
        return self._spare

    def refresh(self) -> None:
        """Look who else is there. Called several times a second, and whenever a worker has come."""
        self._columns = int(self.cells[USED_CELL])
        others = [column for column in range(self._columns) if column != self.column]
        self.others = tuple(map(_start, others))
        self.running = tuple(_start(column) for column in others if self._is_held(column))

    @property
    def is_fresh(self) -> bool:
        """Whether no worker has come in a new column since the last look."""
        return self.cells[USED_CELL] == self._columns

    def _place(self, tag: float) -> None:
        """Find the model's place, or give it the first free one. The header is locked meanwhile."""
        for place in range(MODELS):
            found = self.cells[TAGS_CELL + place]
            if not found:
                self.cells[TAGS_CELL + place] = found = tag
            self._models[found] = place
            if found == tag:
                return

    def _clear_gauges(self) -> None:
        """Whoever had this column before is gone, and so is what it had in flight."""
        for start, rows, width, gauges in (
            (0, KEYS, KEY_CELLS, KEY_GAUGES),
            (MODELS_AT, MODELS, MODEL_CELLS, MODEL_GAUGES),
        ):
            for row in range(rows):
                at = self.mine + start + row * width
                if self.cells[at]:
                    for gauge in range(1, gauges + 1):
                        self.cells[at + gauge] = 0.0


class Row:
    """The cells of one key or model: this worker's own, and those of all workers."""

    __slots__ = ("_at", "_cells", "_counters", "_own", "_tag")

    def __init__(self, counters: Counters, at: int, width: int, tag: float) -> None:
        self._counters = counters
        self._cells = counters.cells
        self._at = at
        start = counters.mine + at
        self._own = own = counters.cells[start : start + width]
        self._tag = tag
        if own[0] != tag:  # it was another's, or nobody's
            own[0] = 0.0
            for cell in range(1, width):
                own[cell] = 0.0
            own[0] = tag

    def holds(self) -> bool:
        """Whether the cells still belong to this key or model."""
        return self._own[0] == self._tag

    def own(self, cell: int) -> float:
        """This worker's."""
        return self._own[cell]

    def put(self, cell: int, value: float) -> None:
        """Set this worker's."""
        self._own[cell] = value

    def add(self, cell: int, amount: float) -> None:
        """Change this worker's."""
        self._own[cell] += amount

    def total(self, cell: int) -> float:
        """The sum over every worker that there ever was."""
        value = self._own[cell]
        if others := self._counters.others:
            for place in self._places(others):
                value += self._cells[place + cell]
        return value

    def running(self, cell: int) -> float:
        """The sum over workers that run now."""
        value = self._own[cell]
        if running := self._counters.running:
            for place in self._places(running):
                value += self._cells[place + cell]
        return value

    def total_where(self, cell: int, condition: int, value: float) -> float:
        """The sum over every worker whose cell `condition` has this value."""
        found = self._own[cell] if self._own[condition] == value else 0.0
        if others := self._counters.others:
            for place in self._places(others):
                if self._cells[place + condition] == value:
                    found += self._cells[place + cell]
        return found

    def lowest_where(self, cell: int, condition: int, value: float) -> float:
        """The lowest over such workers; infinity where there are none."""
        lowest = self._own[cell] if self._own[condition] == value else inf
        if others := self._counters.others:
            for place in self._places(others):
                if self._cells[place + condition] == value:
                    lowest = min(lowest, self._cells[place + cell])
        return lowest

    def lowest_elsewhere(self, cell: int) -> float:
        """The lowest that is not 0 over other workers that run now; 0 where there is none."""
        lowest = 0.0
        if running := self._counters.running:
            for place in self._places(running):
                value = self._cells[place + cell]
                if value and (not lowest or value < lowest):
                    lowest = value
        return lowest

    def _places(self, columns: tuple[int, ...]) -> list[int]:
        """Where this key's or model's rows begin in other workers' columns."""
        places = [start + self._at for start in columns]
        return [place for place in places if self._cells[place] == self._tag]


def _start(column: int) -> int:
    return HEADER_CELLS + column * COLUMN_CELLS


def _claim(file: int, path: Path) -> tuple[memoryview[float], int]:
    """Make the file where it is new, and take the lowest column that is free."""
    size = (HEADER_CELLS + COLUMNS * COLUMN_CELLS) * CELL_BYTES
    if os.fstat(file).st_size < size:
        os.ftruncate(file, size)  # a hole: it takes no room on the disk
    column = next((column for column in range(COLUMNS) if _lock(file, column)), None)
    if column is None:
        raise CountersError(f"{path} has no column left: all {COLUMNS} are held by workers")
    for start, length in ((0, HEADER_CELLS), (_start(column), COLUMN_CELLS)):
        # With its room on the disk made sure of, no later write to the map can fail.
        os.posix_fallocate(file, start * CELL_BYTES, length * CELL_BYTES)
    cells = memoryview(mmap.mmap(file, size)).cast("d")
    if cells[MAGIC_CELL] not in (0.0, MAGIC):
        raise CountersError(f"{path} was written by another version: remove it while nothing runs")
    cells[MAGIC_CELL] = MAGIC
    used, boot = int(cells[USED_CELL]), _boot()
    if cells[BOOT_CELL] != boot:
        _forget_clocks(cells, used)
        cells[BOOT_CELL] = boot
    cells[USED_CELL] = max(used, column + 1)
    return cells, column


def _lock(file: int, column: int, *, keep: bool = True) -> bool:
    """Lock a column's byte, where no other process has."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, column)
    except OSError:
        return False
    if not keep:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, column)
    return True


def _boot() -> float:
    """A number that changes with every start of the machine; 1 where the system does not say."""
    try:
        return tag_of(Path("/proc/sys/kernel/random/boot_id").read_text())
    except OSError:
        return 1.0


def _forget_clocks(cells: memoryview[float], columns: int) -> None:
    for column in range(columns):
        for key in range(KEYS):
            at = _start(column) + key * KEY_CELLS
            if cells[at]:
                for cell in KEY_CLOCKS:
                    cells[at + cell] = 0.0
