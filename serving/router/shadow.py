"""Shadow arms: copies of requests that go to another version, whose answers are counted and thrown away.

Owns: which requests are copied, the caps, and each copy from its hand-over to its record. Never: touching the request
that was copied, its client, its connection or its replica's breaker; trying again; keeping an answer.

A copy is sampled by its request's id, so that every worker decides alike, and sent once the request itself has been
handed to its engine. It goes to the least busy well replica of its version, or nowhere. The record's `shadow_of` joins
it to its request; its engine sees `<request id>-shadow-<label>` as `x-request-id`. One that a cap refuses has a record
too (`rejected`), so that what was sampled is what the records say.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from registry.usage import Outcome, RequestRecord
from serving.router.bodies import Piece
from serving.router.openai_wire import Usage, read_answer
from serving.router.split import bucket_of, sticky_hash
from serving.router.sse import Scanner
from serving.router.table import Shadow
from serving.router.upstream import Backend, Connection

if TYPE_CHECKING:
    from serving.router.exchange import Exchange
    from serving.router.router import Router
    from serving.router.snapshot import ModelState, Snapshot, VersionState

READ_BYTES_MAX: Final = 1024 * 1024
"""A whole answer up to this size is read for its usage."""
NOT_IMPLEMENTED: Final = 501
PRIORITY: Final = "shadow"
SLOT_S: Final = 60
SLOTS: Final = 60


def place_of(request_id: str, salt: bytes) -> int:
    """Where a request lies among 0 to 9999: a shadow gets the ones below its sample. Of two shadows, the one with the
    smaller sample gets some of the other's requests: these are comparable in threes."""
    return bucket_of(sticky_hash(b"shadow:" + request_id.encode("latin-1"), salt))


class Spending:
    """Seconds spent within the last hour, to the minute (rather a minute more). `now` never goes back."""

    __slots__ = ("_slots", "_total")

    def __init__(self) -> None:
        self._slots: deque[list[float]] = deque()
        self._total = 0.0

    def add(self, now: float, seconds: float) -> None:
        slot = now // SLOT_S
        if not self._slots or self._slots[-1][0] != slot:
            self._slots.append([slot, 0.0])
        self._slots[-1][1] += seconds
        self._total += seconds

    def spent(self, now: float) -> float:
        """Seconds of the last hour."""
        oldest = now // SLOT_S - SLOTS
        while self._slots and self._slots[0][0] < oldest:
            self._total -= self._slots.popleft()[1]
        if not self._slots:
            self._total = 0.0  # what rounding left
        return self._total


class Lane:
    """One shadow of one model in this worker, kept across routing tables: its caps and the copies under way."""

    __slots__ = ("config", "copies", "spending")

    def __init__(self, config: Shadow) -> None:
        self.config = config
        self.copies: set[Copy] = set()
        self.spending = Spending()

    def refusal(self, now: float) -> str:
        """Which cap another copy would break; "" where none."""
        if len(self.copies) >= self.config.inflight_max:
            return "shadow_inflight_max"
        return "shadow_budget" if self.is_spent(now) else ""

    def is_spent(self, now: float) -> bool:
        """Whether the hour's engine seconds are used up, those of the copies under way included."""
        budget = self.config.engine_seconds_per_hour
        return bool(budget) and self.spending.spent(now) + sum(copy.uncharged_s(now) for copy in self.copies) >= budget


class Shadows:
    """Every shadow of one worker."""

    __slots__ = ("_lanes", "_router")

    def __init__(self, router: Router) -> None:
        self._router = router
        self._lanes: dict[str, Lane] = {}

    def attach(self, snapshot: Snapshot) -> None:
        """Give a new routing table's models their shadows; those that it has no more let what is under way end."""
        lanes: dict[str, Lane] = {}
        for name, model in snapshot.models.items():
            for config in model.config.shadows:
                if config.label in model.versions:
                    known = f"{name}@{config.label}"
                    lane = lanes[known] = self._lanes.get(known) or Lane(config)
                    lane.config = config
                    model.shadows += ((model.versions[config.label], lane),)
        lanes |= {known: lane for known, lane in self._lanes.items() if known not in lanes and lane.copies}
        self._lanes = lanes

    def offer(self, exchange: Exchange, model: ModelState) -> None:
        """A request has been handed to its engine: copy it to the shadows that sample it."""
        if self._router.draining:
            return
        place = place_of(exchange.record.request_id, model.salt)
        for version, lane in model.shadows:
            if place < lane.config.sample:
                copy = Copy(self._router, exchange, model, version, lane)
                if refusal := lane.refusal(self._router.now()) or self._crowded(model.config.name):
                    copy.refuse(refusal)
                else:
                    lane.copies.add(copy)
                    self._router.soon(copy.start)

    def _crowded(self, model: str) -> str:
        """A copy begins only where a client's request could; it takes no place from one, so none ever waits for it."""
        entrance = self._router.entrance
        if entrance is None:
            return ""
        room = entrance.make_room(model)
        if room is False:
            return "shadow_no_room"
        if room is not True:
            entrance.give_back(room)
        return ""

    def sweep(self, now: float) -> None:
        """End copies that have waited too long, and all of a shadow that has used its hour up."""
        for lane in self._lanes.values():
            if not lane.copies:
                continue
            for copy in list(lane.copies):
                copy.check_deadlines(now)
            if lane.is_spent(now):
                for copy in list(lane.copies):
                    copy.cancel("shadow_budget")

    def cancel(self) -> None:
        """The router stops: it waits for no copy."""
        for lane in self._lanes.values():
            for copy in list(lane.copies):
                copy.cancel("router_stopping")

    @property
    def oldest_started_at(self) -> float:
        """Unix time at which the oldest copy under way began; infinity where there is none."""
        return min(
            (copy.record.started_at for lane in self._lanes.values() for copy in lane.copies), default=float("inf")
        )


class Copy:
    """One request's copy. Implements `upstream.Receiver`."""

    __slots__ = (
        "_backend",
        "_body",
        "_connecting",
        "_connection",
        "_data",
        "_exchange",
        "_handed_over",
        "_lane",
        "_progressed",
        "_router",
        "_scanner",
        "_started",
        "_timeouts",
        "_version",
        "finished",
        "record",
    )

    def __init__(
        self, router: Router, exchange: Exchange, model: ModelState, version: VersionState, lane: Lane
    ) -> None:
        self._router = router
        self._exchange: Exchange | None = exchange
        self._version = version
        self._lane = lane
        self._timeouts = model.config.timeouts
        self._started = router.now()
        self._handed_over = 0.0
        self._progressed = 0.0
        self._backend: Backend | None = None
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._data: list[Piece] = []
        self._body: list[bytes] = []
        self._scanner: Scanner | None = None
        self.finished = False
        primary = exchange.record
        self.record = RequestRecord(
            request_id=f"{primary.request_id}-shadow-{version.label}",
            started_at=router.wall(),
            duration_s=0.0,
            endpoint=primary.endpoint,
            model=primary.model,
            version=version.label,
            replica="",
            outcome="failed",
            status=0,
            streamed=primary.streamed,
            generation=primary.generation,
            assigned=version.label,
            bucket=primary.bucket,
            sticky=primary.sticky,
            request_bytes=primary.request_bytes,
            worker=primary.worker,
            priority=PRIORITY,
            segment=primary.segment,
            shadow_of=primary.request_id,
        )

    def uncharged_s(self, now: float) -> float:
        """Engine seconds that it has taken so far: from its hand-over on."""
        return now - self._handed_over if self._handed_over else 0.0

    # --- forward ---

    def refuse(self, error: str) -> None:
        """It is not sent."""
        self._finish("rejected", error)

    def start(self) -> None:
        """Send it, in a later turn of the loop than its request."""
        exchange, self._exchange = self._exchange, None
        if self.finished or exchange is None:
            return
        now = self._router.now()
        well = [one for one in self._version.backends if one.breaker.allows(now) and not one.breaker.is_open]
        if not well:
            self.refuse("no_ready_engine")
            return
        backend = min(well, key=_load)
        backend.inflight += 1
        self._backend = backend
        self.record.replica = backend.config.id
        self.record.attempts = 1
        self._data = exchange.request_bytes(self._version, backend, self.record.request_id)
        self._hand_over(fresh=False)

    def _hand_over(self, *, fresh: bool) -> None:
        backend = self._backend
        assert backend is not None
        self._handed_over = self._router.now()
        self.record.dispatched_s = self._handed_over - self._started
        self._connection = None if fresh else backend.send(self, self._data)
        if self._connection is None:
            self._connecting = self._router.spawn(self._connect(backend))

    async def _connect(self, backend: Backend) -> None:
        error = ""
        try:
            connection = await backend.connect(self._timeouts.connect_s)
        except TimeoutError:
            error = "connect_timeout"
        except OSError as problem:
            error = "connect_refused" if isinstance(problem, ConnectionRefusedError) else "connect_failed"
        self._connecting = None
        if error:
            self._finish("failed", error)
        else:
            self._connection = connection
            connection.send(self, self._data, fresh=True)

    # --- back: upstream.Receiver ---

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._data = []
        self.record.status = status
        if any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers):
            self._scanner = Scanner(hide_usage=False)

    def on_body(self, data: bytes) -> None:
        record, scanner, now = self.record, self._scanner, self._router.now()
        record.response_bytes += len(data)
        if scanner is None:
            self._progressed = now
            if record.response_bytes <= READ_BYTES_MAX:
                self._body.append(data)
            return
        before = scanner.content_events
        scanner.feed(data)
        if scanner.content_events != before:
            self._progressed = now
            offset = now - self._started
            if not record.first_token_s:
                record.first_token_s = offset
            else:
                record.gap_max_s = max(record.gap_max_s, offset - record.last_token_s)
            record.last_token_s = offset

    def on_end(self) -> None:
        self._connection = None
        scanner, status = self._scanner, self.record.status
        if scanner is not None:
            scanner.rest()
        if status >= 500 and status != NOT_IMPLEMENTED:
            self._finish("failed", f"status_{status}")
        elif scanner is not None and scanner.error:
            self._break("engine_error")
        elif scanner is not None and not scanner.ended and status < 400:
            self._break("stream_truncated")
        else:
            self._finish("completed")

    def on_broken(self, error: str, *, stale: bool) -> None:
        self._connection = None
        if stale and self._backend is not None and not self._backend.closing:
            self._hand_over(fresh=True)  # nobody has seen it yet
        else:
            self._break(error)

    # --- endings ---

    def check_deadlines(self, now: float) -> None:
        """End it where its engine has taken too long. The limits are those of the model."""
        timeouts = self._timeouts
        if timeouts.total_s and now - self._started > timeouts.total_s:
            self._break("total_timeout")
        elif self._connection is not None:
            if not self.record.status:
                self._limit(now - self._handed_over, timeouts.first_byte_s, "first_byte_timeout")
            elif not self._progressed:
                self._limit(now - self._handed_over, timeouts.first_token_s, "first_token_timeout")
            else:
                self._limit(now - self._progressed, timeouts.between_tokens_s, "between_tokens_timeout")

    def _limit(self, waited: float, limit: float, error: str) -> None:
        if limit and waited > limit:
            self._break(error)

    def cancel(self, error: str) -> None:
        """It is no longer wanted: its engine stops generating."""
        self._finish("cancelled", error)

    def _break(self, error: str) -> None:
        scanner = self._scanner
        self._finish("truncated" if scanner is not None and scanner.started else "failed", error)

    def _finish(self, outcome: Outcome, error: str = "") -> None:
        """Let go of everything and account for it, once."""
        if self.finished:
            return
        self.finished = True
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._connection is not None:
            self._connection.abandon()
            self._connection = None
        now, record, lane = self._router.now(), self.record, self._lane
        if self._backend is not None:
            self._backend.inflight -= 1
            self._backend = None
            lane.spending.add(now, self.uncharged_s(now))
        lane.copies.discard(self)
        self._note_answer()
        record.outcome, record.error, record.duration_s = outcome, error, now - self._started
        self._exchange, self._data, self._body = None, [], []
        self._router.account_shadow(record)

    def _note_answer(self) -> None:
        """Put into the record what the answer has said of itself."""
        record, scanner = self.record, self._scanner
        if scanner is not None:
            record.events, record.finish_reason = scanner.content_events, scanner.finish_reason
            usage = scanner.usage
            if usage is None and scanner.content_events:
                record.usage_source, record.completion_tokens = "counted", scanner.content_events
        else:
            answer = read_answer(b"".join(self._body)) if self._body else None
            usage = answer.usage if answer is not None else None
            record.finish_reason = answer.finish_reason if answer is not None else ""
        if usage is not None:
            self._note_usage(usage)

    def _note_usage(self, usage: Usage) -> None:
        record = self.record
        record.prompt_tokens, record.cached_tokens = usage.prompt, usage.cached
        record.completion_tokens = usage.completion
        record.usage_source = "engine"


def _load(backend: Backend) -> int:
    return backend.inflight
