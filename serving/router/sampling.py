"""Sampled requests and feedback on their way out of a worker: bytes that the control plane reads, redacts and deletes.

Owns: which requests are sampled, the at most FLUSH_AFTER_S that an entry waits in memory, the spool's files and their
bounds. Never: reading a body or an answer, waiting for anything but the local page cache, failing a request: what is
over a bound is dropped and counted.

A request for text is sampled by a keyed hash of its id, so that every worker decides alike and no client can choose.
One that names a version itself is not: it is an evaluation or a test. A file is written whole under a hidden name and
then renamed; the control plane takes it in once and deletes it. It holds what clients wrote, so only its owner can
read it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from registry.capture import SPOOL_MAGIC, SUFFIX, Captured, Entry, FeedbackGiven, pack
from serving.router.degraded import CopiedAnswer
from serving.router.openai_wire import GENERATING
from serving.router.split import bucket_of, sticky_hash

if TYPE_CHECKING:
    from registry.usage import RequestRecord
    from serving.router.answer import Answer
    from serving.router.http1 import Request
    from serving.router.snapshot import ModelState

FLUSH_AFTER_S: Final = 0.05
WAITING_BYTES_MAX: Final = 8 * 1024 * 1024
"""Of entries that are not in a file yet."""
BACKLOG_BYTES_MAX: Final = 64 * 1024 * 1024
BACKLOG_FILES_MAX: Final = 2000
"""Of this worker's files that the control plane has not taken in: it may be away."""
LOOK_S: Final = 2.0
"""How often the backlog is looked at."""
ENTRY_BYTES: Final = 1024
"""What an entry takes beside its bytes."""
OK: Final = 200
ENDPOINTS: Final = GENERATING | {"/v1/responses", "/v1/messages"}
"""Endpoints that answer with text."""


class Spool:
    """Writes `FOLDER/<worker>-<nanoseconds>.smp`, one file per flush."""

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
        self._entries: list[Entry] = []
        self._waiting_bytes = 0
        self._sizes = _sizes_of(folder, worker)
        self._looked_ns = 0
        self.lost = 0
        """Entries that were dropped since the worker started: over a bound, or the disk refused them."""
        self.taken = 0

    def add(self, entry: Entry, size: int) -> bool:
        """Take an entry of about `size` bytes; it is in a file within FLUSH_AFTER_S. False where there is no room."""
        size += ENTRY_BYTES
        if self._waiting_bytes + size > WAITING_BYTES_MAX or self._is_full(size):
            self.lost += 1
            return False
        if not self._entries:
            self._call_later(FLUSH_AFTER_S, self.flush)
        self._entries.append(entry)
        self._waiting_bytes += size
        self.taken += 1
        return True

    def flush(self) -> None:
        """Write what waits into a file of its own. What the disk refuses is lost."""
        if not self._entries:
            return
        entries, self._entries, self._waiting_bytes = self._entries, [], 0
        data = b"".join([SPOOL_MAGIC, *map(pack, entries)])
        name = f"{self._worker}-{self._now_ns()}{SUFFIX}"
        hidden = self._folder / f".{name}"
        try:
            file = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                written = os.write(file, data)
            finally:
                os.close(file)
            if written < len(data):
                raise OSError("the disk is full")
            hidden.rename(self._folder / name)
        except OSError:
            self.lost += len(entries)
            with contextlib.suppress(OSError):
                hidden.unlink(missing_ok=True)
        else:
            self._sizes[name] = len(data)

    def _is_full(self, size: int) -> bool:
        """Whether the control plane is too far behind. Looks at the folder every LOOK_S at most."""
        now = self._now_ns()
        if self._sizes and abs(now - self._looked_ns) > LOOK_S * 1e9:
            self._looked_ns = now
            try:
                there = set(os.listdir(self._folder))  # noqa: PTH208 - names alone, which is quick
            except OSError:
                return True
            self._sizes = {name: known for name, known in self._sizes.items() if name in there}
        return len(self._sizes) >= BACKLOG_FILES_MAX or sum(self._sizes.values()) + size > BACKLOG_BYTES_MAX


def _sizes_of(folder: Path, worker: str) -> dict[str, int]:
    """Files that an earlier life of the worker left."""
    try:
        return {path.name: path.stat().st_size for path in folder.glob(f"{worker}-*{SUFFIX}")}
    except OSError:  # taken in meanwhile: the next look shows what is left
        return {}


class Sampling:
    """What of one model's requests is sampled, for one table."""

    __slots__ = ("_salt", "_share", "_spool", "bytes_max")

    def __init__(self, spool: Spool, share: int, bytes_max: int, salt: bytes) -> None:
        self._spool = spool
        self._share = share
        self._salt = salt
        self.bytes_max = bytes_max
        """Of body and answer together."""

    def wants(self, request_id: str) -> bool:
        """Whether the request of this id is sampled."""
        return place_of(request_id, self._salt) < self._share

    def take(self, record: RequestRecord, request: Request, answer: Answer | None) -> None:
        """The request has ended and its record changes no more: keep it, if an engine answered it with 200."""
        if record.status != OK or record.endpoint not in ENDPOINTS or not isinstance(answer, CopiedAnswer):
            return
        body = request.body
        input_cut = len(body) > self.bytes_max
        if input_cut:
            body = b""
        said, output_cut = answer.beginning(self.bytes_max - len(body))
        content_type = answer.content_type.decode("latin-1")
        self._spool.add(Captured(record, body, said, content_type, input_cut, output_cut), len(body) + len(said))


def place_of(request_id: str, salt: bytes) -> int:
    """Where a request lies among 0 to 9999: those below a model's share are sampled."""
    return bucket_of(sticky_hash(b"sample:" + request_id.encode("latin-1"), salt))


def attach(models: Iterable[ModelState], spool: Spool | None) -> None:
    """Have the models of a new table sampled as it says; none where there is no spool."""
    for model in models:
        wanted = model.config.samples
        if spool is not None and wanted.share:
            model.samples = Sampling(spool, wanted.share, wanted.bytes_max, model.salt)


def keep_feedback(spool: Spool | None, given: FeedbackGiven) -> bool:
    """Hand feedback on. False where there is no spool, or no room in it."""
    return spool is not None and spool.add(given, len(given.comment) + len(given.target))
