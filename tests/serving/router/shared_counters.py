"""Several workers' counters over one memory, in one process: what processes share through a file."""

from __future__ import annotations

from contextlib import nullcontext

from serving.router.counters import CELL_BYTES, COLUMN_CELLS, HEADER_CELLS, USED_CELL, Counters


def shared(workers: int, gone: frozenset[int] = frozenset()) -> list[Counters]:
    """One Counters per worker. Columns in `gone` count as those of workers that have died."""
    memory = bytearray((HEADER_CELLS + workers * COLUMN_CELLS) * CELL_BYTES)
    cells = memoryview(memory).cast("d")
    cells[USED_CELL] = workers
    return [Counters(cells, column, lambda other: other not in gone, nullcontext) for column in range(workers)]
