"""The store of samples and feedback: `samples.db` in the state directory, readable by its owner only.

Owns: its tables, transactions and bounds. Never: what a sample says (`registry.samples`), redacting a text: what comes
here is kept as it is.

It is a database of its own because it holds what people wrote: it can be deleted without losing an account. What is
deleted from it is overwritten (`secure_delete`). Every file of the spool is taken in once: its name is written in the
transaction that adds its samples.
"""

from __future__ import annotations

import math
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from registry.errors import DatabaseError
from registry.samples import Feedback, Given, Pending, Query, Retention, TrafficSample, Turn

SCHEMA: Final = 1
BUSY_TIMEOUT_S: Final = 10.0
LIMIT_MAX: Final = 100_000
FEEDBACK_MAX: Final = 500_000
"""So many requests' feedback are kept; the oldest go first."""
PENDING_MAX: Final = 10_000
"""So many pieces of feedback wait for the record of their request."""


class _Texts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    messages: tuple[Turn, ...] | None = None
    output: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    request: dict[str, Any] = {}


_TABLES: Final = """
CREATE TABLE IF NOT EXISTS samples (
    id INTEGER PRIMARY KEY, request_id TEXT NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL,
    started_at REAL NOT NULL, bytes INTEGER NOT NULL, data BLOB NOT NULL, texts BLOB
);
CREATE INDEX IF NOT EXISTS samples_by_time ON samples (model, started_at);
CREATE INDEX IF NOT EXISTS samples_by_request ON samples (request_id);
CREATE TABLE IF NOT EXISTS feedback (
    request_id TEXT NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL, started_at REAL NOT NULL,
    at REAL NOT NULL, score REAL NOT NULL, data BLOB NOT NULL, PRIMARY KEY (request_id, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS feedback_by_time ON feedback (model, started_at);
CREATE TABLE IF NOT EXISTS pending (id INTEGER PRIMARY KEY, request_id TEXT NOT NULL, at REAL NOT NULL, data BLOB);
CREATE TABLE IF NOT EXISTS taken (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (
    what TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL, kind TEXT NOT NULL, value REAL NOT NULL,
    PRIMARY KEY (what, model, version, kind)
) WITHOUT ROWID;
"""
_CONDITIONS: Final[Mapping[Given, str]] = {
    "": "",
    "any": " AND f.score IS NOT NULL",
    "negative": " AND f.score < 0",
    "positive": " AND f.score > 0",
    "none": " AND f.score IS NULL",
}
_encode: Final = msgspec.json.Encoder().encode
_sample: Final = msgspec.json.Decoder(TrafficSample).decode
_feedback: Final = msgspec.json.Decoder(Feedback).decode
_pending: Final = msgspec.json.Decoder(Pending).decode
_texts: Final = msgspec.json.Decoder(_Texts).decode


class SampleStore:
    """The samples of one yard. Thread-safe: one connection, used by one thread at a time.

    Every method may raise DatabaseError.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> SampleStore:
        """The store at `path`, made where there is none. Raises DatabaseError where a newer release wrote it."""
        with _explained(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # its journals take its mode over
            connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            try:
                for pragma in ("auto_vacuum=INCREMENTAL", "journal_mode=WAL", "secure_delete=ON", "synchronous=NORMAL"):
                    connection.execute(f"PRAGMA {pragma}")
                (found,) = connection.execute("PRAGMA user_version").fetchone()
                if found > SCHEMA:
                    raise DatabaseError(
                        f"{path} was written by a newer release of Modelyard",
                        remedy="start that release or a newer one, or move the file away",
                    )
                if found < SCHEMA:
                    connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version={SCHEMA}; COMMIT;")
            except BaseException:
                connection.close()
                raise
        return cls(path, connection)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[SamplesTx]:
        """One write transaction: everything in it is kept, or nothing where the block raises."""
        with self._lock, _explained(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield SamplesTx(self._connection)
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise

    # --- reading ---

    def query(self, wanted: Query) -> list[TrafficSample]:
        """The samples that `wanted` names, with the feedback on them, newest first unless it says otherwise."""
        return [_read(*row) for row in self._select("s.data, s.texts, f.data", wanted, limited=True)]

    def count(self, wanted: Query) -> int:
        """How many there are, whatever its limit."""
        return int(self._select("COUNT(*)", wanted, limited=False)[0][0])

    def feedback(
        self, model: str = "", *, version: str = "", since: float = 0.0, until: float = math.inf, limit: int = 10_000
    ) -> list[Feedback]:
        """Feedback on requests that began in that time, on those that were not sampled too, newest first."""
        rows = self._rows(
            "SELECT data FROM feedback WHERE (?1 = '' OR model = ?1) AND (?2 = '' OR version = ?2)"
            " AND started_at >= ?3 AND started_at < ?4 ORDER BY started_at DESC LIMIT ?5",
            (model, version, since, _finite(until), min(limit, LIMIT_MAX)),
        )
        return [_feedback(data) for (data,) in rows]

    def pending(self) -> list[tuple[int, Pending]]:
        """Feedback that waits for the record of its request, oldest first, with its number."""
        return [(number, _pending(data)) for number, data in self._rows("SELECT id, data FROM pending ORDER BY at")]

    def taken(self) -> set[str]:
        """Names of the spool's files that were taken in and may be there still."""
        return {name for (name,) in self._rows("SELECT name FROM taken")}

    def counts(self, what: str) -> dict[tuple[str, str, str], float]:
        """(model, version, kind) -> how often, since the store was made."""
        rows = self._rows("SELECT model, version, kind, value FROM counts WHERE what = ?", (what,))
        return {(model, version, kind): value for model, version, kind, value in rows}

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Model -> how many samples and bytes of them are kept."""
        rows = self._rows("SELECT model, COUNT(*), SUM(bytes) FROM samples GROUP BY model")
        return {model: (count, size) for model, count, size in rows}

    def _select(self, columns: str, wanted: Query, *, limited: bool) -> list[Any]:
        if not wanted.texts:
            columns = columns.replace("s.texts", "NULL")
        order = "DESC" if wanted.newest_first else "ASC"
        tail = f" ORDER BY s.started_at {order}, s.id {order} LIMIT ?5" if limited else ""
        return self._rows(
            f"SELECT {columns} FROM samples s LEFT JOIN feedback f ON f.request_id = s.request_id"  # noqa: S608
            " AND f.key = s.key WHERE (?1 = '' OR s.model = ?1) AND (?2 = '' OR s.version = ?2)"
            f" AND s.started_at >= ?3 AND s.started_at < ?4{_CONDITIONS[wanted.feedback]}{tail}",
            (wanted.model, wanted.version, wanted.since, _finite(wanted.until))
            + ((min(wanted.limit, LIMIT_MAX),) if limited else ()),
        )

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock, _explained(self._path):
            return self._connection.execute(statement, values).fetchall()

    # --- bounds ---

    def prune(self, now: float, rules: Mapping[str, Retention], default: Retention) -> int:
        """Delete samples that are too old, too many or too large together, oldest first; feedback and pending feedback
        likewise. Returns how many samples went."""
        gone = 0
        sizes = self.sizes()
        oldest_s = max([default.age_s, *(rule.age_s for rule in rules.values())])
        with self._lock, _explained(self._path):
            run = self._connection.execute
            for model, (count, size) in sizes.items():
                rule = rules.get(model, default)
                gone += run(
                    "DELETE FROM samples WHERE model = ? AND started_at < ?", (model, now - rule.age_s)
                ).rowcount
                if count > rule.count_max or size > rule.bytes_max:
                    gone += run(
                        "DELETE FROM samples WHERE id IN (SELECT id FROM (SELECT id, ROW_NUMBER() OVER w AS n,"
                        " SUM(bytes) OVER w AS total FROM samples WHERE model = ?1"
                        " WINDOW w AS (ORDER BY started_at DESC, id DESC)) WHERE n > ?2 OR total > ?3)",
                        (model, rule.count_max, rule.bytes_max),
                    ).rowcount
            said = run("DELETE FROM feedback WHERE started_at < ?", (now - oldest_s,)).rowcount
            said += run(
                "DELETE FROM feedback WHERE (request_id, key) IN"
                " (SELECT request_id, key FROM feedback ORDER BY at DESC LIMIT -1 OFFSET ?)",
                (FEEDBACK_MAX,),
            ).rowcount
            if gone or said:
                run("PRAGMA incremental_vacuum").fetchall()
                run("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # what was deleted is in no journal either
        return gone


class SamplesTx:
    """One write transaction. Made by `SampleStore.transaction`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._run = connection.execute

    def append(self, samples: Iterable[TrafficSample]) -> None:
        """Add samples; feedback in them is left out (`give` adds it)."""
        for sample in samples:
            texts = None
            if sample.messages is not None or sample.output is not None:
                texts = _encode(
                    _Texts(
                        messages=sample.messages,
                        output=sample.output,
                        tool_calls=sample.tool_calls,
                        request=sample.request,
                    )
                )
            plain = msgspec.structs.replace(
                sample,
                messages=None,
                output=None,
                tool_calls=(),
                request={},
                feedback=None,
                label="",
                comment=None,
                target=None,
                feedback_at=0.0,
            )
            data = _encode(plain)
            size = len(data) + len(texts or b"")
            self._run(
                "INSERT INTO samples (request_id, key, model, version, started_at, bytes, data, texts)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (sample.request_id, sample.key, sample.model, sample.version, sample.started_at, size, data, texts),
            )

    def give(self, one: Feedback) -> bool:
        """Keep feedback in place of an earlier one on the same request (of its key: clients may choose ids, and two
        may choose the same one). Returns whether it is the latest."""
        changed = self._run(
            "INSERT INTO feedback (request_id, key, model, version, started_at, at, score, data)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (request_id, key) DO UPDATE SET"
            " model = excluded.model, version = excluded.version, started_at = excluded.started_at,"
            " at = excluded.at, score = excluded.score, data = excluded.data"
            " WHERE excluded.at >= feedback.at",
            (one.request_id, one.key, one.model, one.version, one.started_at, one.at, one.score, _encode(one)),
        )
        return changed.rowcount > 0

    def wait(self, one: Pending) -> int:
        """Keep feedback, without its texts (whether any may be kept is not known yet), until the record of its request
        is there; the oldest go where too many wait. Returns its number."""
        bare = msgspec.structs.replace(one, comment=None, target=None)
        added = self._run(
            "INSERT INTO pending (request_id, at, data) VALUES (?, ?, ?)", (one.request_id, one.at, _encode(bare))
        )
        number = added.lastrowid or 0
        self._run("DELETE FROM pending WHERE id <= ?", (number - PENDING_MAX,))
        return number

    def settled(self, numbers: Iterable[int]) -> None:
        """Feedback that waits no longer, by its numbers."""
        for number in numbers:
            self._run("DELETE FROM pending WHERE id = ?", (number,))

    def take(self, names: Iterable[str]) -> None:
        """Files of the spool whose content this transaction adds."""
        for name in names:
            self._run("INSERT OR IGNORE INTO taken (name) VALUES (?)", (name,))

    def forget(self, names: Iterable[str]) -> None:
        """Taken files that are deleted."""
        for name in names:
            self._run("DELETE FROM taken WHERE name = ?", (name,))

    def add(self, what: str, model: str = "", version: str = "", kind: str = "", value: float = 1.0) -> None:
        """Count up one of the totals that `SampleStore.counts` gives."""
        self._run(
            "INSERT INTO counts (what, model, version, kind, value) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (what, model, version, kind) DO UPDATE SET value = value + excluded.value",
            (what, model, version, kind, value),
        )


def _read(data: bytes, texts: bytes | None, said: bytes | None) -> TrafficSample:
    sample = _sample(data)
    changes: dict[str, Any] = {}
    if texts is not None:
        found = _texts(texts)
        changes |= {name: getattr(found, name) for name in _Texts.__struct_fields__}
    if said is not None:
        one = _feedback(said)
        changes |= {"feedback": one.score, "label": one.label, "feedback_at": one.at}
        changes |= {"comment": one.comment, "target": one.target}
    return msgspec.structs.replace(sample, **changes) if changes else sample


def _finite(until: float) -> float:
    return min(until, 1e18)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn a failure of the database into one sentence."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except (sqlite3.Error, OSError) as error:
        raise DatabaseError(
            f"the samples in {path} cannot be used ({error})",
            remedy="check its file system, or move the file away to begin anew",
        ) from error
