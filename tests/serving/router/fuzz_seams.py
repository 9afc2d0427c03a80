"""The seams where sockets would be, for fuzzing: a transport that records, and one router behind it on its own loop.

Owns: feeding bytes to a client or engine connection in pieces, and what came of it. Never: deciding what is right.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httptools
from router_harness import model, version

from registry.usage import scan
from serving.router.account import SegmentWriter
from serving.router.http1 import Client
from serving.router.protocol import Up
from serving.router.router import Router
from serving.router.table import Limits, Replica, Table
from serving.router.upstream import Backend, Connection

IDS = re.compile(rb"(?<=x-request-id: )[^\r]*")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LIMITS = Limits(body_bytes_max=4096, head_bytes_max=2048)


QUIET = socket.socketpair()
"""A socket on which nothing ever arrives."""


class Recorder(asyncio.Transport):
    """A transport without a socket: what is written to it is kept, and closing it is told as a loop would."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        super().__init__({"socket": QUIET[0]})
        self._loop = loop
        self._protocol: asyncio.Protocol | None = protocol
        self.reading = True
        self.closed = False
        self.eof = False
        self.sent = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.eof, "written after the end"
        self.sent += data

    def write_eof(self) -> None:
        self.eof = True

    def can_write_eof(self) -> bool:
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever buffered here."""

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed and self._protocol is not None:
            self.closed = True
            self._loop.call_soon(self._protocol.connection_lost, None)
            self._protocol = None

    def abort(self) -> None:
        self.close()


class Bench:
    """One router without engines, on a loop that runs only when told."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.faults: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.faults.append(context))
        self.folder = folder
        self.clock = 100.0
        self.segments = SegmentWriter(
            folder, "w0", now_ns=lambda: 1, call_later=lambda delay, callback: self.loop.call_soon(callback)
        )
        reports: list[Up] = []
        self.router = Router(
            "w0",
            self.loop,
            self.segments,
            now=lambda: self.clock,
            wall=lambda: 1e9,
            rng=random.Random(1),
            report=reports.append,
        )
        table = Table(generation=1, models={"assistant": model([version("v1", [])], {"v1": 10_000})}, limits=LIMITS)
        self.router.publish(table)

    def turn(self, times: int = 3) -> None:
        """Let the loop run what is due."""
        for _ in range(times):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
        assert not self.faults, self.faults

    def settle(self, transport: Recorder) -> None:
        """Let the loop run until nothing more is written."""
        size = -1
        while size != len(transport.sent):
            size = len(transport.sent)
            self.turn()

    def records(self) -> int:
        """How many requests have been accounted for so far."""
        self.turn()
        return sum(len(scan(path.read_bytes(), from_start=True)[0]) for path in self.folder.glob("*.seg"))

    def converse(self, pieces: Sequence[bytes]) -> tuple[bytes, bool, Client]:
        """What a client gets that sends these pieces: the bytes (ids made alike), and whether it is over then."""
        client = Client(self.router)
        transport = Recorder(self.loop, client)
        client.connection_made(transport)
        for piece in pieces:
            if piece and not transport.closed:
                client.data_received(piece)
                self.turn(1)
        self.settle(transport)
        sent = IDS.sub(b"id", bytes(transport.sent)).replace(CONTINUE, b"")
        over = transport.closed or transport.eof
        if not over:
            assert client.deadline > 0, "a connection that nobody ends"
            assert client.deadline <= self.clock + 80 + LIMITS.body_bytes_max / 1024
        self.clock += 200.0
        self.router.sweep(self.clock)
        self.settle(transport)
        if not transport.closed:  # a linger has a deadline of its own
            self.clock += 200.0
            self.router.sweep(self.clock)
            self.settle(transport)
        assert transport.closed, "a connection outlived its deadline"
        return sent, over, client


@contextmanager
def bench() -> Iterator[Bench]:
    """A bench in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        made = Bench(Path(folder))
        yield made
        made.segments.close()
        made.loop.close()


def pieces_of(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """`data` cut at these places (taken modulo its length)."""
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:stop] for start, stop in pairwise(places)]


class Answers:
    """Parses what a router wrote: every answer must be well-formed and whole."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.complete = 0
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> Answers:
        self._parser.feed_data(data)
        return self

    def on_headers_complete(self) -> None:
        self.statuses.append(self._parser.get_status_code())

    def on_message_complete(self) -> None:
        self.complete += 1


class Taker:
    """Takes an engine's answer, as an exchange does."""

    def __init__(self) -> None:
        self.heads: list[tuple[int, list[tuple[bytes, bytes]]]] = []
        self.body = b""
        self.end = ""

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        assert not self.end
        self.heads.append((status, list(headers)))

    def on_body(self, data: bytes) -> None:
        assert self.heads
        assert not self.end
        assert data
        self.body += data

    def on_end(self) -> None:
        assert not self.end
        self.end = "end"

    def on_broken(self, error: str, *, stale: bool) -> None:
        assert not self.end
        self.end = error


def take(loop: asyncio.AbstractEventLoop, pieces: Sequence[bytes]) -> tuple[Taker, bool]:
    """What becomes of an engine's answer in these pieces, after which it closes; whether its connection was kept."""
    backend = Backend(Replica(id="m@v1/0", host="127.0.0.1", port=1), loop, now=lambda: 0.0)
    connection, taker = Connection(backend, now=lambda: 0.0), Taker()
    transport = Recorder(loop, connection)
    connection.connection_made(transport)
    connection.send(taker, [b"GET / HTTP/1.1\r\n\r\n"], fresh=True)
    for piece in pieces:
        if not transport.closed:
            connection.data_received(piece)
    kept = taker.end == "end" and not transport.closed
    if not transport.closed:
        connection.eof_received()
        transport.close()
    for _ in range(2):
        loop.call_soon(loop.stop)
        loop.run_forever()
    assert taker.end, "neither whole nor broken"
    assert backend.open == 0
    return taker, kept
