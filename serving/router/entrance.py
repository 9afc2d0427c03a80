"""What stands between a request and its engines: its key's limits, then its model's queue.

Owns: the permits of one worker's requests, who is told when room is made, and how long they have waited. Never: the
arithmetic (`quota`), the order (`admission`), anything for a request whose key and model nothing limits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeAlias

from registry.usage import RequestRecord
from serving.errors import ApiError
from serving.router.admission import BATCH, INTERACTIVE, PRIORITIES, SHADOW, Gate, Ticket, priority_of
from serving.router.counters import Counters
from serving.router.openai_wire import Peek
from serving.router.quota import Charge, KeyLimits, estimate_tokens, has_limits
from serving.router.table import Admission, Key, Table

LOOK_S: Final = 0.005
"""How often a worker looks for room that others make, while something waits in it."""
PRIORITY_HEADER: Final = b"x-modelyard-priority"


class Request(Protocol):
    """What is asked of a request's head and body."""

    body: bytes
    headers: dict[bytes, bytes]
    key: Key | None


class Exchange(Protocol):
    """Whoever asks to be let in."""

    record: RequestRecord
    finished: bool
    permit: Permit | None

    def proceed(self) -> None:
        """It is let in."""

    def reject(self, error: ApiError) -> None:
        """It is not."""


class Permit:
    """One request's place: what its key was charged, and its ticket at its model's gate."""

    __slots__ = ("_entrance", "charge", "exchange", "headers", "ticket")

    def __init__(self, entrance: Entrance, exchange: Exchange) -> None:
        self._entrance = entrance
        self.exchange = exchange
        self.charge: Charge | None = None
        self.ticket: Ticket[Permit] | None = None
        self.headers = b""
        """Lines for the answer's head."""

    def go(self) -> None:
        """It was let in a moment ago; its client may have left since."""
        if not self.exchange.finished:
            self.exchange.proceed()

    def release(self) -> None:
        """The request has ended and its record is complete: give back what it held, count what it used. Once."""
        self._entrance.release(self)


ModelGate: TypeAlias = Gate[Permit]


class Entrance:
    """One worker's. `now` is the machine's monotonic clock, `wall` the Unix time; `later` and `soon` call back."""

    def __init__(
        self,
        counters: Counters,
        *,
        now: Callable[[], float],
        wall: Callable[[], float],
        later: Callable[..., asyncio.TimerHandle],
        soon: Callable[[Callable[[], None]], None],
    ) -> None:
        self._counters = counters
        self._now = now
        self._wall = wall
        self._later = later
        self._soon = soon
        self._keys: dict[str, KeyLimits] = {}
        self._gates: dict[str, ModelGate] = {}
        self._context_tokens: dict[str, int] = {}
        self._look: asyncio.TimerHandle | None = None

    def publish(self, table: Table) -> bool:
        """Go by a new table. Returns whether anything is limited."""
        now = self._now()
        self._keys = {
            key.id: KeyLimits(key, self._counters.key(key.id, key.slot), now) for key in table.keys if has_limits(key)
        }
        gates, self._gates = self._gates, {}
        for name, model in table.models.items():
            known = gates.get(name)
            if known is None and model.admission.inflight_max:
                known = Gate(name, self._counters.model(name), model.admission)
            if known is not None and (model.admission.inflight_max or known.waiting):
                known.configure(model.admission)
                self._gates[name] = known
        for gate in gates.values():
            if gate.name not in self._gates:  # the model has gone: let what waits find that out
                gate.configure(Admission())
            self._let_in(gate, now)
        self._context_tokens = {
            name: max((version.context_tokens for version in model.versions.values()), default=0)
            for name, model in table.models.items()
        }
        return bool(self._keys or self._gates)

    def enter(self, exchange: Exchange, request: Request, seen: Peek) -> bool:
        """Whether a request may go on now. If not, it has been rejected, or `proceed` is called when it may."""
        record = exchange.record
        gate = self._gates.get(record.model)
        limits = self._keys.get(record.key_id) if record.key_id else None
        if gate is None and limits is None:
            return True
        if not self._counters.is_fresh:
            self._counters.refresh()
        permit = exchange.permit = Permit(self, exchange)
        now = self._now()
        if limits is not None:
            max_tokens = seen.max_tokens or seen.max_completion_tokens or seen.max_output_tokens
            tokens = estimate_tokens(len(request.body), max_tokens, self._context_tokens.get(record.model, 0))
            charge = limits.enter(now, self._wall(), tokens)
            if isinstance(charge, ApiError):
                permit.headers = limits.headers(now)
                exchange.reject(charge)
                return False
            permit.charge = charge
            permit.headers = charge.headers
        return gate is None or self._line_up(gate, permit, request, seen, now)

    def make_room(self, model: str) -> Ticket[Permit] | bool:
        """Room for a shadow's copy: True where nothing limits the model, False where there is none now, else a ticket
        for `give_back`."""
        gate = self._gates.get(model)
        if gate is None:
            return True
        now = self._now()
        ticket = gate.enter(now, SHADOW, Permit(self, _NOBODY))
        if isinstance(ticket, ApiError):
            return False
        if not ticket.admitted:
            gate.cancel(ticket)
            return False
        return ticket

    def give_back(self, ticket: Ticket[Permit]) -> None:
        """A shadow's copy has ended."""
        now = self._now()
        ticket.gate.leave(now)
        self._let_in(ticket.gate, now)

    def release(self, permit: Permit) -> None:
        """See Permit."""
        now, record = self._now(), permit.exchange.record
        ticket, permit.ticket = permit.ticket, None
        if ticket is not None:
            if ticket.admitted:
                ticket.gate.leave(now)
            else:
                record.queued_s = now - ticket.arrived
                ticket.gate.cancel(ticket)
            self._let_in(ticket.gate, now)
        charge, permit.charge = permit.charge, None
        if charge is not None:
            served = record.attempts > 0
            charge.limits.settle(
                charge,
                now,
                self._wall(),
                tokens=tokens_used(record) if served else 0,
                engine_s=max(0.0, record.duration_s - record.queued_s - record.overhead_s) if served else 0.0,
                served=served,
            )

    def sweep(self, now: float) -> None:
        """Give up what has waited too long, and see which workers are there. Called several times a second."""
        if self._counters.others or not self._counters.is_fresh:
            self._counters.refresh()
        for gate in list(self._gates.values()):
            if gate.waiting:
                for ticket in gate.expired(now):
                    ticket.waiter.exchange.reject(gate.timeout())
                self._let_in(gate, now)

    def waiting(self) -> dict[str, tuple[int, ...]]:
        """Model -> how many of each class wait in this worker; models for which none does are left out."""
        return {name: gate.lengths() for name, gate in self._gates.items() if gate.waiting}

    # --- inner ---

    def _line_up(self, gate: ModelGate, permit: Permit, request: Request, seen: Peek, now: float) -> bool:
        exchange, key = permit.exchange, request.key
        best = BATCH if key is not None and key.priority == "batch" else INTERACTIVE
        try:
            priority = priority_of(request.headers.get(PRIORITY_HEADER), seen.service_tier, best)
        except ApiError as error:
            exchange.reject(error)
            return False
        exchange.record.priority = PRIORITIES[priority]
        ticket = gate.enter(now, priority, permit)
        if isinstance(ticket, ApiError) and (victim := gate.displace(priority)) is not None:
            victim.waiter.exchange.reject(ticket)
            ticket = gate.enter(now, priority, permit)
        if isinstance(ticket, ApiError):
            exchange.reject(ticket)
            return False
        permit.ticket = ticket
        if not ticket.admitted:
            self._watch()
        return ticket.admitted

    def _let_in(self, gate: ModelGate, now: float) -> None:
        """Let in whom there is room for, from the loop: what they do must not recurse."""
        while (ticket := gate.next(now)) is not None:
            ticket.waiter.exchange.record.queued_s = now - ticket.arrived
            self._soon(ticket.waiter.go)

    def _watch(self) -> None:
        """While something waits and there are other workers, look for the room that they make."""
        if self._look is None and self._counters.running:
            self._look = self._later(LOOK_S, self._look_again)

    def _look_again(self) -> None:
        self._look = None
        now = self._now()
        for gate in self._gates.values():
            if gate.waiting:
                self._let_in(gate, now)
                self._watch()


def tokens_used(record: RequestRecord) -> int:
    """What a request that an engine saw counts for: the engine's own figures. Where its client left before there were
    any, what it was sent (by its bytes) and what it had been given."""
    if record.usage_source == "engine":
        return record.prompt_tokens + record.completion_tokens
    if record.outcome in ("cancelled", "truncated"):
        return estimate_tokens(record.request_bytes, None, 0) + record.completion_tokens
    return record.completion_tokens


class _Nobody:
    """Stands for a shadow's copy, which never waits."""

    permit: Permit | None = None
    finished = True
    record: Any = None

    def proceed(self) -> None: ...

    def reject(self, error: ApiError) -> None: ...


_NOBODY: Final = _Nobody()
