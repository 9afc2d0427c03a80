"""Answers kept across runs and suites, so that nothing is asked twice of a version that cannot have changed.

Owns: the key of an answer, the file, its bound. Never: whether a run may use it (session.py), requests, scores.

The key is a hash of everything that may change the answer: the version's digest, the request's body (messages,
sampling, seed, extra fields), the later turns, the repeat, and whether it is the second run of an A/A comparison, which
must ask anew to be one. Where the engine runs is no part of it. Only versions with a digest have a key, and only where
the engine is the yard's own: behind an `external` or `hosted` one the weights may change without a new digest.

One SQLite file, bounded; the answers used longest ago go first. Answers that a killed process had not flushed are
asked again: the cache is no journal.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

import msgspec

from eval.client import body_of
from eval.errors import StateDirError
from eval.results import RunKey, Subject
from eval.stream import Completion
from eval.suite import Case

BYTES_MAX: Final = 256 * 1024 * 1024
KEPT_SHARE: Final = 0.8
"""What is left of the bound after a clearing, so that not every run clears."""
FOREIGN_ENGINES: Final = frozenset({"external", "hosted"})
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, body BLOB NOT NULL, bytes INTEGER NOT NULL, used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_used ON answers (used);
"""

_encoder = msgspec.json.Encoder(order="deterministic")
_completions = msgspec.json.Decoder(Completion)


def key_of(subject: Subject, run: RunKey, case: Case, repeat: int) -> str:
    """The key of a case's answer; "" where it must not be kept."""
    if not subject.digest or subject.engine in FOREIGN_ENGINES:
        return ""
    body = body_of(case, run.sampling, run.seed + repeat)
    return hashlib.sha256(_encoder.encode([1, subject.digest, body, case.then, repeat, run.twin])).hexdigest()


class ResponseCache:
    """The kept answers of one state directory. Safe for several processes and for two threads of one."""

    def __init__(self, path: Path, bytes_max: int = BYTES_MAX, *, reading: bool = True) -> None:
        """With `reading` off nothing is found: what is asked anew takes the place of what was there."""
        self._path = path
        self._reading = reading
        self._bytes_max = bytes_max
        self._pending: dict[str, Completion] = {}
        self._used: set[str] = set()
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = self._open()
        except (OSError, sqlite3.Error) as error:
            raise StateDirError(path, "written", _as_os_error(error)) from error

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            # Losing the last answers with the machine costs nothing but asking again.
            database.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; {_SCHEMA}")
        except sqlite3.DatabaseError as error:
            database.close()
            if "not a database" not in str(error) and "malformed" not in str(error):
                raise
            self._path.unlink()  # a damaged cache is an empty one
            return self._open()
        return database

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, key: str) -> Completion | None:
        """The kept answer, as it was when it was given."""
        if not self._reading:
            return None
        with self._lock:
            if (pending := self._pending.get(key)) is not None:
                return pending
            try:
                row = self._database.execute("SELECT body FROM answers WHERE key = ?", (key,)).fetchone()
            except sqlite3.Error:  # damaged where it is read: asking again costs less than ending the run
                row = None
            if row is None:
                return None
            self._used.add(key)
        try:
            return _completions.decode(row[0])
        except msgspec.DecodeError:  # of another release
            return None

    def put(self, key: str, completion: Completion) -> None:
        """Keep an answer; on disk with the next `flush`."""
        with self._lock:
            self._pending[key] = completion

    def flush(self) -> None:
        """Write what is pending. Blocks: call it off the event loop. Raises StateDirError."""
        with self._lock:
            pending, self._pending = self._pending, {}
            used, self._used = self._used, set()
            if pending or used:
                with self._writing() as now:
                    self._write(pending, used, now)

    def close(self) -> None:
        """Write what is pending, and clear what is over the bound. Raises StateDirError."""
        try:
            self.flush()
            with self._lock, self._writing():
                self._clear()
        finally:
            self._database.close()

    @contextmanager
    def _writing(self) -> Iterator[int]:
        """A transaction, and the number of this moment in the order of use."""
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield 1 + int(self._database.execute("SELECT coalesce(max(used), 0) FROM answers").fetchone()[0])
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            raise StateDirError(self._path, "written", _as_os_error(error)) from error

    def _write(self, pending: dict[str, Completion], used: set[str], now: int) -> None:
        bodies = {key: _encoder.encode(completion) for key, completion in pending.items()}
        rows = [(key, body, len(body), now) for key, body in bodies.items()]
        self._database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", rows)
        self._database.executemany("UPDATE answers SET used = ? WHERE key = ?", [(now, key) for key in used])

    def _clear(self) -> None:
        held = int(self._database.execute("SELECT coalesce(sum(bytes), 0) FROM answers").fetchone()[0])
        if held <= self._bytes_max:
            return
        excess = held - int(self._bytes_max * KEPT_SHARE)
        self._database.execute(
            "DELETE FROM answers WHERE key IN (SELECT key FROM (SELECT key, bytes, sum(bytes) OVER "
            "(ORDER BY used, key) AS so_far FROM answers) WHERE so_far - bytes < ?)",
            (excess,),
        )


def _as_os_error(error: Exception) -> OSError:
    return error if isinstance(error, OSError) else OSError(str(error))
