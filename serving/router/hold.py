"""An exchange's hold on the replica that it is trying: counted in flight, connected, paused, let go.

Owns: the in-flight count and the connection of one attempt, so that neither outlives it. Never: choosing the replica,
what its answer means.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from serving.router.bodies import Piece
from serving.router.upstream import Backend, Connection, Receiver

if TYPE_CHECKING:
    from serving.router.router import Router


class Holder(Protocol):
    """Whoever holds a replica."""

    def sent(self) -> None:
        """A request has been handed to the replica."""


class Hold:
    """At most one replica, and at most one connection to it, at a time."""

    __slots__ = ("_connecting", "_connection", "_paused", "_router", "backend", "since")

    def __init__(self, router: Router) -> None:
        self._router = router
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._paused = False
        self.backend: Backend | None = None
        self.since = 0.0
        """When the replica was last asked, or we last began to listen to it again."""

    @property
    def waits_for_engine(self) -> bool:
        """Whether it is the engine that takes the time: not the connecting, nor a slow client."""
        return self._connecting is None and not self._paused

    def take(self, backend: Backend) -> None:
        """Count a request in flight at this replica and at no other."""
        self.release()
        self.backend = backend
        backend.inflight += 1
        backend.breaker.begin()

    def release(self) -> None:
        backend, self.backend = self.backend, None
        if backend is not None:
            backend.inflight -= 1
            backend.breaker.abandoned()

    def dispatch(
        self, holder: Holder, receiver: Receiver, data: list[Piece], *, connect_s: float, fresh: bool = False
    ) -> None:
        """Hand a request to the replica, over an idle connection where there is one. What becomes of it, the receiver
        hears."""
        backend = self.backend
        assert backend is not None
        self.since = self._router.now()
        self._connection = None if fresh else backend.send(receiver, data)
        if self._connection is None:
            self._connecting = self._router.spawn(self._connect(backend, holder, receiver, data, connect_s))
            return
        if self._paused:
            self._connection.pause()
        holder.sent()

    async def _connect(
        self, backend: Backend, holder: Holder, receiver: Receiver, data: list[Piece], connect_s: float
    ) -> None:
        error = ""
        try:
            connection = await backend.connect(connect_s)
        except TimeoutError:
            error = "connect_timeout"
        except OSError as problem:
            error = "connect_refused" if isinstance(problem, ConnectionRefusedError) else "connect_failed"
        self._connecting = None
        if error:
            receiver.on_broken(error, stale=False)
            return
        self.since = self._router.now()
        self._connection = connection
        connection.send(receiver, data, fresh=True)
        if self._paused:
            connection.pause()
        holder.sent()

    def ended(self) -> None:
        """The connection is no longer ours: its answer is complete, or it broke."""
        self._connection = None

    def pause(self) -> None:
        """The client reads more slowly than the engine writes: stop reading from the engine."""
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        self._paused = False
        self.since = self._router.now()
        if self._connection is not None:
            self._connection.resume()

    def leave(self) -> None:
        """Stop what the replica is doing for us, connecting included. It stays counted until `release`."""
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon()
