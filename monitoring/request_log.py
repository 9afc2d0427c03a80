"""The newest finished requests, to be looked through one by one.

Owns: a bounded memory of request records, which of them somebody asks for, and how a request's time divides into
phases. Never: I/O, clocks, texts (the store of samples has those).
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final

from monitoring.observe import OUTCOMES, outcome_class
from registry.usage import RequestRecord

RECORDS_MAX: Final = 5_000
PAGE_MAX: Final = 200
FAULTY: Final = "not completed"
"""In place of an outcome: every one but `completed`."""
CHOICES: Final = (*OUTCOMES, FAULTY)

_ended = attrgetter("ended_at")
_duration = attrgetter("duration_s")


@dataclass(frozen=True, slots=True)
class RequestQuery:
    """Which requests. An empty field asks for nothing."""

    model: str = ""
    version: str = ""
    """The one that answered."""
    arm: str = ""
    """The one that the split assigned."""
    outcome: str = ""
    """One of CHOICES."""
    key: str = ""
    """The id of an API key."""
    segment: str = ""
    copies: bool = False
    """Also copies for shadow arms: no client asked for them."""
    slowest: bool = False
    """The longest first, in place of the newest; only among those in memory."""
    before: float = math.inf
    """Only those that ended before, Unix seconds."""
    limit: int = 50

    def takes(self, record: RequestRecord) -> bool:
        """Whether the record is one of them."""
        return (
            self.model in ("", record.model)
            and self.version in ("", record.version)
            and self.arm in ("", record.assigned)
            and self.key in ("", record.key_id)
            and self.segment in ("", record.segment)
            and (self.copies or not record.shadow_of)
            and record.ended_at < self.before
            and self._has_outcome(record)
        )

    def _has_outcome(self, record: RequestRecord) -> bool:
        if not self.outcome:
            return True
        found = outcome_class(record)
        return found != "completed" if self.outcome == FAULTY else found == self.outcome

    def older(self, than: float) -> RequestQuery:
        """The same, among what ended before `than`, newest first."""
        return replace(self, before=min(self.before, than), slowest=False)


@dataclass(frozen=True, slots=True)
class RequestPage:
    """What was found."""

    records: tuple[RequestRecord, ...]
    more: bool
    """There are further ones in memory, or may be on disk."""
    kept: int
    """How many requests are in memory, whatever was asked for."""
    oldest: float | None
    """When the oldest of those ended, Unix seconds."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """A model's requests since some moment, as far as they are in memory."""

    records: Sequence[RequestRecord]
    since: float
    """Unix seconds from which on they are all here: the moment asked for, or later where memory is shorter."""


class RequestLog:
    """The newest `records_max` records by the time they came. Not thread-safe."""

    def __init__(self, records_max: int = RECORDS_MAX) -> None:
        self._records: deque[RequestRecord] = deque(maxlen=records_max)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def records_max(self) -> int:
        return self._records.maxlen or 0

    def add(self, records: Iterable[RequestRecord]) -> None:
        """Take in finished requests; the ones that came first are forgotten for it."""
        self._records.extend(sorted(records, key=_ended))

    def page(self, wanted: RequestQuery) -> RequestPage:
        """The first `limit` of those asked for."""
        limit = max(1, min(wanted.limit, PAGE_MAX))
        key = _duration if wanted.slowest else _ended
        found = heapq.nlargest(limit + 1, filter(wanted.takes, self._records), key=key)
        oldest = min(map(_ended, self._records), default=None)
        return RequestPage(tuple(found[:limit]), len(found) > limit, len(self), oldest)

    def find(self, request_id: str) -> list[RequestRecord]:
        """The request of that id, newest first, and its copies for shadow arms. Clients may give an id twice."""
        own = [one for one in self._records if request_id in (one.request_id, one.shadow_of)]
        return sorted(own, key=lambda one: (bool(one.shadow_of), -one.ended_at))

    def traffic(self, model: str, since: float) -> Traffic:
        """The model's requests that arrived at `since` or later."""
        found = [one for one in self._records if one.model == model and one.started_at >= since]
        full = len(self._records) == self._records.maxlen
        oldest = min((one.ended_at for one in self._records), default=since) if full else since
        return Traffic(found, max(since, oldest))


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a request's time."""

    name: str
    """`queue`, `router`, `retries`, `first token`, `answer`, `end`."""
    start_s: float
    """Offset from the request's arrival."""
    seconds: float
    meaning: str


MEANING: Final = {
    "queue": "waited for admission: the model was busy",
    "router": "the router's own work: reading, choosing, preparing",
    "retries": "attempts that gave no answer, and the waits between them",
    "first token": "the engine read the prompt and made the first token",
    "answer": "the engine made the rest of the answer",
    "end": "from the last token to the last byte",
}


def phases(record: RequestRecord) -> tuple[Phase, ...]:
    """How the request's time divides, in order; together it is its duration.

    An answer that is not streamed has no first token of its own: all of it is `answer`. A request that no engine took
    waited, and the rest was the router's.
    """
    total = max(0.0, record.duration_s)
    queued = min(max(0.0, record.queued_s), total)
    if record.dispatched_s <= 0:
        return _stretches([("queue", queued), ("router", total)], total)
    dispatched = min(record.dispatched_s, total)
    router_until = min(queued + max(0.0, record.overhead_s), dispatched)
    ends = [("queue", queued), ("router", router_until)]
    if record.attempts > 1:
        ends.append(("retries", dispatched))
    else:
        ends[-1] = ("router", dispatched)
    if record.streamed and record.first_token_s > 0:
        ends += [("first token", record.first_token_s), ("answer", max(record.first_token_s, record.last_token_s))]
        ends.append(("end", total))
    else:
        ends.append(("answer", total))
    return _stretches(ends, total)


def _stretches(ends: list[tuple[str, float]], total: float) -> tuple[Phase, ...]:
    found: list[Phase] = []
    at = 0.0
    for name, end in ends:
        stop = min(max(at, end), total)
        if stop > at:
            found.append(Phase(name, at, stop - at, MEANING[name]))
        at = stop
    return tuple(found)


def tokens_per_second(record: RequestRecord) -> float | None:
    """Tokens after the first / the time from the first to the last; None where it was not seen."""
    span = record.last_token_s - record.first_token_s
    if not record.streamed or record.first_token_s <= 0 or span <= 0 or record.completion_tokens < 2:
        return None
    return (record.completion_tokens - 1) / span
