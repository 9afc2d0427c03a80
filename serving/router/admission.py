"""Which request of a model goes to an engine next, and which waits: the bounded queue in front of a model.

Owns: the order, the bounds and the times of waiting. Never: I/O, clocks (times come in as arguments), knowing what a
request is.

    enter   there is room and nobody goes first: Ticket, admitted
            the queue has room: Ticket, waiting; later `next` admits it, or `expired` gives it up (503 queue_timeout)
            it has none: ApiError 429 queue_full
    leave   an admitted one has ended; call `next` until it has none
    cancel  whoever held a ticket has gone

**Order.** A request goes by the time at which it is due: when it came, plus its class's handicap. Interactive requests
have none, batch ones half of the queue's timeout, shadow ones more than any wait. So classes are served strictly in
their order, each first in first out, except that a batch request which has waited for half the timeout goes before
interactive ones that come later: it is not starved. Shadow requests are.

**Several workers.** Each has a queue of its own and says in a shared number when its first one is due. A worker that
has room leaves it to another worker's earlier one, which looks again every few milliseconds; where it is still left
after PATIENCE_S (that worker hangs) it is taken all the same. How many are in flight is counted before it is checked,
so that the bound holds over all workers.
"""

from __future__ import annotations

from collections import OrderedDict
from math import ceil
from typing import Final, Generic, TypeVar

from serving.errors import ApiError
from serving.router.counters import Row
from serving.router.table import Admission

INFLIGHT, WAITING, HEAD = 1, 2, 3
INTERACTIVE, BATCH, SHADOW = 0, 1, 2
PRIORITIES: Final = ("interactive", "batch", "shadow")
PATIENCE_S: Final = 0.1
BATCH_HANDICAP: Final = 0.5
"""Of the queue's timeout."""
SHADOW_HANDICAP_S: Final = 1e6
PACE_WEIGHT: Final = 0.1
"""How much the last departure counts in the mean time between departures."""

Waiter = TypeVar("Waiter")


class Ticket(Generic[Waiter]):
    """One request at one model's gate. `waiter` is whose it is; the gate never looks at it."""

    __slots__ = ("admitted", "arrived", "due", "gate", "priority", "waiter")

    def __init__(self, gate: Gate[Waiter], priority: int, arrived: float, due: float, waiter: Waiter) -> None:
        self.gate = gate
        self.priority = priority
        self.arrived = arrived
        self.due = due
        self.waiter = waiter
        self.admitted = False


class Gate(Generic[Waiter]):
    """One model in one worker."""

    __slots__ = ("_cells", "_handicaps", "_left_at", "_offered", "_pace_s", "_passed_over", "_queues", "config", "name")

    def __init__(self, name: str, cells: Row, config: Admission) -> None:
        self.name = name
        self._cells = cells
        self._queues: tuple[OrderedDict[Ticket[Waiter], None], ...] = (OrderedDict(), OrderedDict(), OrderedDict())
        self._offered = 0.0
        """Since when room has been left to another worker; 0 where none is."""
        self._passed_over = 0.0
        """The due time of another worker's request that was waited for in vain."""
        self._left_at = 0.0
        """When the last one left while others waited."""
        self._pace_s = 0.0
        self.configure(config)

    def configure(self, config: Admission) -> None:
        """Go on by new bounds. Call `next` until it has none: there may be more room."""
        self.config = config
        self._handicaps = (0.0, BATCH_HANDICAP * config.queue_timeout_s, SHADOW_HANDICAP_S)

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queues))

    def lengths(self) -> tuple[int, ...]:
        """How many of each class wait in this worker."""
        return tuple(map(len, self._queues))

    def enter(self, now: float, priority: int, waiter: Waiter) -> Ticket[Waiter] | ApiError:
        """A request has come. `now` is a clock that all workers share and that never goes back."""
        ticket = Ticket(self, priority, now, now + self._handicaps[priority], waiter)
        first = self._first()
        if (first is None or ticket.due < first.due) and self._take(ticket.due, now):
            ticket.admitted = True
        elif not self._line_up(ticket):
            return ApiError(
                429,
                f"Too many requests wait for {self.name} ({self.config.queue_max}): try again later.",
                code="queue_full",
                retry_after_s=self._retry_after_s(),
            )
        return ticket

    def displace(self, priority: int) -> Ticket[Waiter] | None:
        """Where the queue is full: the one that waits for less urgent work and came last, no longer waiting."""
        for queue in self._queues[:priority:-1]:
            if queue:
                ticket, _ = queue.popitem()
                self._publish()
                return ticket
        return None

    def next(self, now: float) -> Ticket[Waiter] | None:
        """The next one that may go; None where none may now."""
        first = self._first()
        if first is None or not self._take(first.due, now):
            return None
        del self._queues[first.priority][first]
        self._publish()
        first.admitted = True
        return first

    def expired(self, now: float) -> list[Ticket[Waiter]]:
        """Those that have waited too long; they wait no longer."""
        before = now - self.config.queue_timeout_s
        over: list[Ticket[Waiter]] = []
        for queue in self._queues:
            while queue and next(iter(queue)).arrived <= before:
                over.append(queue.popitem(last=False)[0])
        if over:
            self._publish()
        return over

    def timeout(self) -> ApiError:
        """What one that has waited too long is told."""
        return ApiError(
            503,
            f"No engine of {self.name} was free within {self.config.queue_timeout_s:g} s: try again later.",
            code="queue_timeout",
            retry_after_s=self._retry_after_s(),
        )

    def cancel(self, ticket: Ticket[Waiter]) -> None:
        """A waiting one has gone. Others may be first now: call `next`."""
        queue = self._queues[ticket.priority]
        if ticket in queue:
            del queue[ticket]
            self._publish()

    def leave(self, now: float) -> None:
        """An admitted one has ended."""
        self._cells.add(INFLIGHT, -1.0)
        if self._left_at:
            self._pace_s += PACE_WEIGHT * (now - self._left_at - self._pace_s)
        self._left_at = now if self._first() is not None else 0.0

    # --- inner ---

    def _first(self) -> Ticket[Waiter] | None:
        """The one of ours that is due first."""
        first: Ticket[Waiter] | None = None
        urgent, batch, shadow = self._queues
        if not (urgent or batch or shadow):
            return None
        for queue in self._queues:
            if queue:
                head = next(iter(queue))
                if first is None or head.due < first.due:
                    first = head
        return first

    def _take(self, due: float, now: float) -> bool:
        """Count one more in flight where there is room and where nobody elsewhere goes first."""
        cells, bound = self._cells, self.config.inflight_max
        cells.add(INFLIGHT, 1.0)  # first ours, then the sum: of two workers at the bound, at least one sees the other
        if bound and cells.running(INFLIGHT) > bound:
            cells.add(INFLIGHT, -1.0)
            self._offered = 0.0
            return False
        ahead = cells.lowest_elsewhere(HEAD)
        if ahead and ahead < due and ahead != self._passed_over:
            self._offered = self._offered or now
            if now - self._offered < PATIENCE_S:
                cells.add(INFLIGHT, -1.0)
                return False
            self._passed_over = ahead
        self._offered = 0.0
        return True

    def _line_up(self, ticket: Ticket[Waiter]) -> bool:
        cells = self._cells
        cells.add(WAITING, 1.0)
        if cells.running(WAITING) > self.config.queue_max:
            cells.add(WAITING, -1.0)
            return False
        self._queues[ticket.priority][ticket] = None
        self._publish()
        return True

    def _publish(self) -> None:
        """Tell the other workers how many wait here and when the first of them is due."""
        first = self._first()
        self._cells.put(WAITING, self.waiting)
        self._cells.put(HEAD, first.due if first is not None else 0.0)

    def _retry_after_s(self) -> int:
        """Until the queue of now will have gone, at the pace of late: 1 s to the queue's timeout."""
        expected_s = self._pace_s * self._cells.running(WAITING)
        return max(1, ceil(min(expected_s, self.config.queue_timeout_s)))


def priority_of(asked: bytes | None, tier: object, best: int) -> int:
    """The class of a request: what it asks for (`x-modelyard-priority`, else `service_tier`), at best its key's.

    Raises ApiError (400) where the header names no class that a client may have.
    """
    if asked is None:
        return max(best, BATCH if tier == "flex" else INTERACTIVE)
    if asked == b"interactive":
        return best
    if asked == b"batch":
        return max(best, BATCH)
    raise ApiError(
        400, "x-modelyard-priority must be interactive or batch.", code="invalid_priority", param="x-modelyard-priority"
    )
