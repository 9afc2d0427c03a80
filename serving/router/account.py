"""The worker's pen: every finished request becomes one record in this worker's own segment file.

Owns: the open segment, its rotation, and the at most FLUSH_AFTER_S that a record waits in memory. Never: reading
segments, deciding what a record says, blocking on anything but the local page cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from registry.usage import MAGIC, RequestRecord, frame

FLUSH_AFTER_S: Final = 0.05
SEGMENT_BYTES_MAX: Final = 64 * 1024 * 1024
UNWRITTEN_BYTES_MAX: Final = 4 * 1024 * 1024
FRAME_RECORDS_MAX: Final = 128
"""So many records are packed together; a record costs a third of one that is packed alone."""


class SegmentWriter:
    """Appends records to `FOLDER/<worker>-<nanoseconds>.seg`.

    `now_ns` names segments (their names sort by age); `call_later(delay_s, callback)` schedules the flush.
    """

    def __init__(
        self,
        folder: Path,
        worker: str,
        *,
        now_ns: Callable[[], int],
        call_later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._folder = folder
        self._worker = worker
        self._now_ns = now_ns
        self._call_later = call_later
        self._records: list[RequestRecord] = []
        self._buffer: list[bytes] = []
        self._buffered_bytes = 0
        self._file = -1
        self.records_lost = 0
        self.segment = ""
        self.flushed_bytes = 0
        self._open()

    def append(self, record: RequestRecord) -> None:
        """Take one record, which changes no more; it is in the file within FLUSH_AFTER_S."""
        records = self._records
        if not records and not self._buffer:
            self._call_later(FLUSH_AFTER_S, self.flush)
        records.append(record)
        if len(records) >= FRAME_RECORDS_MAX:
            self._pack()

    def flush(self) -> None:
        """Write what waits. Where the disk refuses, it goes on waiting, within UNWRITTEN_BYTES_MAX."""
        if self._records:
            self._pack()
        if not self._buffer:
            return
        data = b"".join(self._buffer)
        try:
            if self._file < 0 or self.flushed_bytes > SEGMENT_BYTES_MAX:
                self._open()
            written = os.write(self._file, data)
        except OSError:
            self._call_later(1.0, self.flush)
            return
        self.flushed_bytes += written
        self._buffer = [data[written:]] if written < len(data) else []
        self._buffered_bytes = len(data) - written
        if self._buffer:
            self._call_later(FLUSH_AFTER_S, self.flush)

    def _pack(self) -> None:
        """Turn the records that wait into bytes that wait."""
        data = frame(*self._records)
        if self._buffered_bytes + len(data) > UNWRITTEN_BYTES_MAX:
            self.records_lost += len(self._records)
        else:
            self._buffer.append(data)
            self._buffered_bytes += len(data)
        self._records.clear()

    def close(self) -> None:
        """Write what waits and close the file."""
        self.flush()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self.segment = f"{self._worker}-{self._now_ns()}.seg"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self._folder / self.segment, flags, 0o600)
        self.flushed_bytes = os.write(self._file, MAGIC)
