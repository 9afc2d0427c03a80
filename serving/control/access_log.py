"""The access log: one JSON line per finished request, written where records are counted, not where they are served.

Owns: the file, what a line holds, sampling, rotation. Never: a body, a header, a key or a sticky key (no record has
them), holding up the count: what cannot be written is lost and said so.

A line is written after its record was counted: a control plane that is killed between the two loses lines and never
writes one twice. The account (`modelyard cost`, metrics) loses nothing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import zlib
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from registry.usage import RequestRecord

log = logging.getLogger("modelyard.access_log")

BASIS_POINTS: Final = 10_000
HIDDEN: Final = frozenset({"sticky", "started_at"})
"""Of a record, what no line holds: a sticky key's hash would still tell sessions apart; the time is written out."""
TOGETHER: Final = {"request_id": ("request_id", "shadow_of"), "trace_id": ("trace_id", "span_id", "parent_span_id")}
"""What is left out with a field: other places of the same thing."""
SECONDS_DIGITS: Final = 6


class AccessLog:
    """Appends to `path`, readable by its owner only; at `bytes_max` it becomes `path`.1, in place of the one before.

    `sample` is in basis points, of completed requests below status 400; all others are written. `redact` names fields
    to leave out. Used by one thread at a time.
    """

    def __init__(self, path: Path, *, sample: int, bytes_max: int, redact: Collection[str] = ()) -> None:
        self.path = path
        self._sample = sample
        self._bytes_max = bytes_max
        left_out = HIDDEN.union(*(TOGETHER.get(name, (name,)) for name in redact))
        self._fields = tuple(name for name in RequestRecord.__struct_fields__ if name not in left_out)
        self._encode = msgspec.json.Encoder().encode
        self._file = -1
        self._torn = False
        self.problem = ""
        """Why the last lines could not be written; "" where they were."""

    def write(self, records: Sequence[RequestRecord]) -> None:
        """Append the records' lines. Raises nothing: `problem` says what is wrong."""
        lines = [self._encode(self._line(record)) for record in records if self._chosen(record)]
        if not lines:
            return
        data = b"\n".join(lines) + b"\n"
        try:
            if self._file < 0 or os.fstat(self._file).st_size + len(data) > self._bytes_max or self._was_moved():
                self._open(len(data))
            self._append(data)
        except OSError as error:
            if not self.problem:
                log.warning("the access log %s cannot be written: %s", self.path, error.strerror)
            self.problem = f"{self.path} cannot be written ({error.strerror}): lines are being lost"
            self.close()
        else:
            self.problem = ""

    def _append(self, data: bytes) -> None:
        """Raises OSError. A line that the disk had no room for ends before the next one."""
        data = b"\n" + data if self._torn else data
        written = os.write(self._file, data)
        self._torn = written < len(data)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _chosen(self, record: RequestRecord) -> bool:
        """By the request's id, so that whoever samples by the same rule chooses the same requests."""
        if self._sample >= BASIS_POINTS or record.outcome != "completed" or record.status >= 400:
            return True
        return zlib.crc32(record.request_id.encode()) % BASIS_POINTS < self._sample

    def _line(self, record: RequestRecord) -> dict[str, object]:
        at = datetime.fromtimestamp(record.started_at, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {"time": at.replace("+00:00", "Z")}
        for name in self._fields:
            value = getattr(record, name)
            line[name] = round(value, SECONDS_DIGITS) if type(value) is float else value
        return line

    def _was_moved(self) -> bool:
        """Whether somebody else's rotation took the file away."""
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return True
        ours = os.fstat(self._file)
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _open(self, room: int) -> None:
        """The file with room for so many bytes more, rotated where it has not. What is no file of its own (a link, a
        pipe, /dev/stdout) is not rotated, and none is waited for."""
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            there = self.path.lstat()
            if stat.S_ISREG(there.st_mode) and there.st_size + room > self._bytes_max:
                self.path.replace(self.path.with_name(self.path.name + ".1"))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        self._file = os.open(self.path, flags, 0o600)
