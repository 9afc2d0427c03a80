"""Feedback joined with the requests that it is about.

Owns: finding the request of an id, whose feedback counts, and feedback that waits for its request. Never: reading the
spool (`samples`), the store's tables.

Feedback counts for a request that the yard has had, given with the API key that the request was made with or by an
operator. It may come before its request's record is counted, so it waits up to WAIT_S; what then has no request is
counted and forgotten. The latest one on a request is the one that counts. What a client wrote waits in memory alone:
whether texts may be kept depends on the request's model.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from registry.capture import FeedbackGiven
from registry.config import SamplesConfig
from registry.errors import NotFoundError
from registry.redact import Redactor
from registry.sample_store import SampleStore, SamplesTx
from registry.samples import Feedback, Pending
from registry.usage import RequestRecord
from serving.control import segments

WAIT_S: Final = 600.0
LOOK_BACK_AFTER_S: Final = 2.0
"""By then the record of a request that has ended is counted: segments are searched for older ones."""
LOOK_BACK_EVERY_S: Final = 30.0
LOOK_BACK_S: Final = 7 * 86400.0
LOOK_BACK_BYTES_MAX: Final = 512 * 1024 * 1024
"""Of segments, for an operator who waits for it: some seconds at most."""
GLANCE_BYTES_MAX: Final = 64 * 1024 * 1024
"""For what clients send: half a second of one core, so that unknown ids hold up nobody."""
SAME_ID_MAX: Final = 8
KNOWN_MAX: Final = 20_000
"""Requests that feedback finds at once."""
DEFAULT: Final = SamplesConfig()
"""For models that the configuration has no more."""


@dataclass(frozen=True, slots=True)
class Known:
    """What feedback needs of a request."""

    model: str
    version: str
    started_at: float
    segment: str
    key_id: str

    @classmethod
    def of(cls, record: RequestRecord) -> Known:
        return cls(record.model, record.version, record.started_at, record.segment, record.key_id)


class FeedbackJoin:
    """One yard's feedback. `models` gives the configuration in force, `requests` is the folder of the records'
    segments. `collect` may be called by another thread."""

    def __init__(
        self,
        store: SampleStore,
        *,
        models: Callable[[], Mapping[str, SamplesConfig]],
        requests: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._models = models
        self._requests = requests
        self._clock = clock
        self._known: OrderedDict[str, tuple[Known, ...]] = OrderedDict()
        self._known_lock = threading.Lock()
        self._texts: dict[int, tuple[str, str]] = {}
        self._pending: dict[int, Pending] = {}
        self._looked: set[str] = set()
        self._looked_at = 0.0
        self.reload()

    @property
    def waits(self) -> bool:
        """Whether feedback waits for its request."""
        return bool(self._pending)

    def reload(self) -> None:
        """Go on from what the store says."""
        self._pending = dict(self._store.pending())

    def collect(self, records: Sequence[RequestRecord]) -> None:
        """Requests that were counted: feedback on them may come. Called in the ingest's thread."""
        with self._known_lock:
            for record in records:
                if record.model and not record.shadow_of:
                    others = self._known.get(record.request_id, ())
                    self._known[record.request_id] = _with(others, Known.of(record))
                    self._known.move_to_end(record.request_id)
            while len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)

    def give(self, given: FeedbackGiven) -> Feedback:
        """Feedback by an operator, joined at once. Raises NotFoundError where the yard has had no such request."""
        found = self._find(given.request_id)
        if not found:
            found = self._look_back([given.request_id], LOOK_BACK_BYTES_MAX).get(given.request_id, ())
        if not found:
            raise NotFoundError(
                f"there was no request {given.request_id} in the last {LOOK_BACK_S / 86400:.0f} days",
                remedy="it is the `x-request-id` of an answer, and is known about a second after the answer ends",
            )
        one = self._feedback(given, found[-1])
        with self._store.transaction() as tx:
            self._keep(tx, one)
        return one

    def join(self, tx: SamplesTx, given: Iterable[FeedbackGiven]) -> int:
        """Put feedback to its requests; what has none yet waits. Returns how many found theirs."""
        now = self._clock()
        kept = 0
        settled: list[int] = []
        for one in given:
            known = self._find(one.request_id)
            if known:
                kept += self._judge(tx, one, known)
                continue
            waiting = Pending(request_id=one.request_id, at=one.at, score=one.score, label=one.label, key=one.key_id)
            number = tx.wait(waiting)
            self._pending[number] = waiting
            self._texts[number] = (one.comment, one.target)
        found = self._look_back_for(now)
        for number, waits in self._pending.items():
            known = self._find(waits.request_id) or found.get(waits.request_id, ())
            if known:
                comment, target = self._texts.get(number, ("", ""))
                again = FeedbackGiven(waits.request_id, waits.at, waits.score, waits.label, comment, target, waits.key)
                kept += self._judge(tx, again, known)
            elif now - waits.at > WAIT_S:
                tx.add("feedback_ignored", kind="unknown_request")
            else:
                continue
            settled.append(number)
        tx.settled(settled)
        for number in settled:
            self._pending.pop(number, None)
            self._texts.pop(number, None)
        return kept

    def _judge(self, tx: SamplesTx, given: FeedbackGiven, known: tuple[Known, ...]) -> int:
        own = next((one for one in known if one.key_id == given.key_id), None)
        if own is None:
            tx.add("feedback_ignored", kind="other_key")
            return 0
        self._keep(tx, self._feedback(given, own))
        return 1

    def _feedback(self, given: FeedbackGiven, known: Known) -> Feedback:
        config = self._models().get(known.model, DEFAULT)
        comment = target = None
        if config.store == "text":
            redactor = Redactor(config.redact, [given.comment, given.target])
            comment, target = redactor.text(given.comment) or None, redactor.text(given.target) or None
        return Feedback(
            request_id=given.request_id,
            model=known.model,
            version=known.version,
            started_at=known.started_at,
            at=given.at,
            score=given.score,
            label=given.label,
            comment=comment,
            target=target,
            segment=known.segment,
            key=known.key_id,
        )

    def _keep(self, tx: SamplesTx, one: Feedback) -> None:
        kind = "positive" if one.score > 0 else "negative" if one.score < 0 else "neutral"
        tx.give(one)
        tx.add("feedback", one.model, one.version, kind)

    def _find(self, request_id: str) -> tuple[Known, ...]:
        """The requests of that id, one per key, the latest last: clients may choose ids."""
        with self._known_lock:
            return self._known.get(request_id, ())

    def _look_back_for(self, now: float) -> dict[str, tuple[Known, ...]]:
        """Requests that feedback waits for and that are not among the latest: searched for once, now and then."""
        wanted = {
            one.request_id
            for one in self._pending.values()
            if now - one.at > LOOK_BACK_AFTER_S and one.request_id not in self._looked
        }
        if not wanted or abs(now - self._looked_at) < LOOK_BACK_EVERY_S:
            return {}
        self._looked_at = now
        self._looked = (self._looked | wanted) & {one.request_id for one in self._pending.values()}
        return self._look_back(wanted, GLANCE_BYTES_MAX)

    def _look_back(self, wanted: Iterable[str], bytes_max: int) -> dict[str, tuple[Known, ...]]:
        """Search the segments of the last days, newest first, within bounds."""
        missing, found, size = set(wanted), dict[str, tuple[Known, ...]](), 0
        if self._requests is None:
            return found
        for name in reversed(segments.names(self._requests)):
            path = self._requests / str(name)
            try:
                stat = path.stat()
                size += stat.st_size
                if size > bytes_max or self._clock() - stat.st_mtime > LOOK_BACK_S:
                    break
                for record in _records(path):
                    if record.request_id in missing and record.model and not record.shadow_of:
                        found[record.request_id] = _with(found.get(record.request_id, ()), Known.of(record))
            except OSError:
                continue
            if missing <= found.keys():
                break
        return found


def _with(others: tuple[Known, ...], known: Known) -> tuple[Known, ...]:
    """The requests of one id with another one: one per key, the latest last, SAME_ID_MAX at most."""
    return (*(one for one in others if one.key_id != known.key_id), known)[-SAME_ID_MAX:]


def _records(path: Path) -> Iterator[RequestRecord]:
    """Every record of a segment that can be read."""
    offset, more = 0, True
    while more:
        reading = segments.read(path, offset)
        yield from reading.records
        more = reading.more and reading.offset > offset
        offset = reading.offset
