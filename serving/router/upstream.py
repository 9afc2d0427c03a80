"""Connections to engines: pooled, reused, one request at a time on each.

Owns: the sockets to one replica, parsing of answers, and what a broken connection means. Never: choosing a replica,
retrying, knowing about models.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, cast

import httptools

from serving.router.breaker import Breaker
from serving.router.table import Replica

IDLE_S: Final = 20.0
"""How long an idle connection is kept, unless the engine says less."""
IDLE_CONNECTIONS_MAX: Final = 256
SILENT_BYTES_MAX: Final = 64 * 1024
"""What an engine may send on end without any body: heads (of 1xx too), extensions of chunks, trailers."""


class Receiver(Protocol):
    """Whoever sent the request that a connection carries. Exactly one of the last two ends an exchange."""

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The head of the answer has arrived."""

    def on_body(self, data: bytes) -> None:
        """Some of the body: all that one read brought, in one piece."""

    def on_end(self) -> None:
        """The answer is complete; the connection may already be carrying another request."""

    def on_broken(self, error: str, *, stale: bool) -> None:
        """The connection ended before the answer did. `stale`: it was an idle one that the engine had closed."""


class Backend:
    """One replica at run time: its pool and its in-flight count, kept across routing tables."""

    __slots__ = (
        "_idle",
        "_loop",
        "_now",
        "_ssl",
        "breaker",
        "closing",
        "config",
        "head",
        "inflight",
        "open",
        "path_prefix",
    )

    def __init__(self, config: Replica, loop: asyncio.AbstractEventLoop, now: Callable[[], float]) -> None:
        self._loop = loop
        self._now = now
        self._idle: deque[Connection] = deque()
        self._ssl = ssl.create_default_context() if config.tls else None
        self.breaker = Breaker()
        self.closing = False
        self.inflight = 0
        self.open = 0
        self.config = config
        self.update(config)

    def update(self, config: Replica) -> None:
        """Take over state and headers from a new table; address and port are the same.

        A replica that comes back has answered the control plane: what its breaker knew was of the process before.
        """
        if config.state == "ready" and self.config.state != "ready":
            self.breaker = Breaker()
        host = config.host_header or f"{config.host}:{config.port}"
        lines = [b"host: " + host.encode("latin-1")]
        if config.authorization:
            lines.append(b"authorization: " + config.authorization.encode("latin-1"))
        self.config = config
        self.path_prefix = config.base_path.encode("latin-1")
        self.head = b"\r\n".join(lines) + b"\r\n"

    def same_place(self, config: Replica) -> bool:
        """Whether the replica is still where these connections lead."""
        now = self.config
        return (now.host, now.port, now.tls) == (config.host, config.port, config.tls)

    def send(self, receiver: Receiver, data: list[bytes | memoryview]) -> Connection | None:
        """Send a request over an idle connection; None where there is none (then `connect`)."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                connection.send(receiver, data, fresh=False)
                return connection
        return None

    async def connect(self, timeout_s: float) -> Connection:
        """A new connection. Raises OSError or TimeoutError."""
        connect = self._loop.create_connection(
            lambda: Connection(self, self._now),
            self.config.host,
            self.config.port,
            ssl=self._ssl,
            server_hostname=self.config.host if self._ssl else None,
        )
        async with asyncio.timeout(timeout_s or None):
            _, protocol = await connect
        return protocol

    def keep(self, connection: Connection) -> None:
        """Take back a connection whose exchange has ended well."""
        if self.closing or len(self._idle) >= IDLE_CONNECTIONS_MAX:
            connection.close()
        else:
            self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        self.open -= 1
        if connection in self._idle:
            self._idle.remove(connection)

    def close_idle(self, now: float) -> None:
        """Close connections that have been idle for too long (all of them when closing)."""
        while self._idle and (self.closing or self._idle[0].idle_until <= now):
            self._idle.popleft().close()


SPENT: Final = httptools.HttpResponseParser(object())
"""In the place of a parser that is not needed any more."""


class Connection(asyncio.Protocol):
    """One socket to one replica."""

    __slots__ = (
        "_answer_ends_with_connection",
        "_backend",
        "_chunks",
        "_complete",
        "_fresh",
        "_head",
        "_idle_s",
        "_large",
        "_now",
        "_parser",
        "_paused",
        "_receiver",
        "_reusable",
        "_silent_bytes",
        "_transport",
        "idle_until",
    )

    def __init__(self, backend: Backend, now: Callable[[], float]) -> None:
        self._backend = backend
        self._now = now
        self._receiver: Receiver | None = None
        self._paused = False
        self._complete = False
        self._idle_s = IDLE_S
        self.idle_until = 0.0

    # --- used by an exchange ---

    @property
    def usable(self) -> bool:
        return not self._transport.is_closing() and self.idle_until > self._now()

    def send(self, receiver: Receiver, data: list[bytes | memoryview], *, fresh: bool) -> None:
        """Send one request; its answer goes to `receiver`."""
        self._receiver = receiver
        self._fresh = fresh
        self._head: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []
        self._complete = False
        self._answer_ends_with_connection = False
        self._silent_bytes = 0
        self._large = len(data) > 1
        if len(data) == 1:
            self._transport.write(data[0])
        else:
            self._transport.writelines(data)

    def abandon(self) -> None:
        """Stop the exchange: the engine notices that its client has gone and stops generating."""
        self._receiver = None
        self._transport.abort()

    def close(self) -> None:
        self._transport.close()

    def pause(self) -> None:
        """Read no more for now: the client is slower than the engine."""
        if not self._transport.is_closing() and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._transport.is_closing() and self._paused:
            self._paused = False
            self._transport.resume_reading()

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)  # here, not before: one that is refused has no end either
        self._backend.open += 1

    def data_received(self, data: bytes) -> None:
        if self._receiver is None:  # an engine that speaks unasked is closing, or confused
            self._transport.close()
            return
        self._fresh = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self._complete:
                self._break("malformed_answer")
                return
            self._reusable = False
        receiver = self._receiver
        if receiver is None:
            return
        if self._chunks:
            chunks, self._chunks = self._chunks, []
            self._silent_bytes = 0
            receiver.on_body(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        elif not self._complete:
            self._silent_bytes += len(data)
            if self._silent_bytes > SILENT_BYTES_MAX:
                self._break("malformed_answer")
                return
        if self._complete and self._receiver is receiver:
            self._finish(receiver, reusable=self._reusable)

    def eof_received(self) -> bool:
        if self._receiver is not None and self._answer_ends_with_connection:
            self._finish(self._receiver, reusable=False)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._parser = SPENT  # ours knows us: no cycle may be left to the garbage collector
        self._backend.forget(self)
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.on_broken("engine_reset", stale=not self._fresh)

    # --- httptools callbacks. Bytes after a whole answer are nobody's: their connection is not used again. ---

    def on_message_begin(self) -> None:
        if self._complete:
            self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200:  # 100 Continue and its like: the real head follows
            self._head = []
            return
        names = {name for name, _ in self._head}
        if not 200 <= status < 600:
            raise ValueError(f"there is no status {status}")  # the parser makes a HttpParserError of it
        self._answer_ends_with_connection = not names & {b"content-length", b"transfer-encoding"} and status not in (
            204,
            304,
        )
        for name, value in self._head:
            if name == b"keep-alive" and value.startswith(b"timeout="):
                seconds = value[8:].split(b",")[0]
                self._idle_s = max(0.0, min(IDLE_S, int(seconds) - 1.0)) if seconds.isdigit() else IDLE_S
            elif name == b"transfer-encoding" and value.lower() != b"chunked":
                raise ValueError("a transfer coding that was not asked for")
        if self._receiver is not None:
            self._receiver.on_head(status, self._head)

    def on_body(self, data: bytes) -> None:
        if not self._complete:
            self._chunks.append(data)

    def on_message_complete(self) -> None:
        if not self._complete:
            self._complete = self._parser.get_status_code() >= 200
            self._reusable = self._parser.should_keep_alive()  # true only until the parser is fed again

    # --- inner ---

    def _finish(self, receiver: Receiver, *, reusable: bool) -> None:
        """The answer is whole: give the connection back first, so that it is free for what `on_end` leads to."""
        self._receiver = None
        if self._large and self._transport.get_write_buffer_size():
            reusable = False  # it has answered without reading the request to its end: what would it take the rest for?
        if reusable and not self._transport.is_closing():
            self.idle_until = self._now() + self._idle_s
            self.resume()  # its client may be slow over the last bytes: that must not hold up the next one's
            self._backend.keep(self)
        else:
            self._transport.close()
        receiver.on_end()

    def _break(self, error: str) -> None:
        receiver, self._receiver = self._receiver, None
        self._transport.abort()
        if receiver is not None:
            receiver.on_broken(error, stale=False)
