"""A connection to an engine on a transport that only notes what is done to it: no socket, no loop."""

from __future__ import annotations

import asyncio
from typing import cast

from serving.router.table import Replica
from serving.router.upstream import Backend, Connection

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Notes(asyncio.Transport):
    """A transport without a socket."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True
        self.closed = False
        self.sent: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


class SlowReader:
    """Takes an answer, and asks for a pause when its body comes."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.ended = False

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        assert status == 200

    def on_body(self, data: bytes) -> None:
        assert self.connection is not None
        self.connection.pause()

    def on_end(self) -> None:
        self.ended = True

    def on_broken(self, error: str, *, stale: bool) -> None:
        raise AssertionError(error)


def test_a_connection_paused_for_its_last_client_reads_on_for_the_next() -> None:
    loop = cast(asyncio.AbstractEventLoop, None)  # only connecting needs one
    backend = Backend(Replica(id="m@v1/0", host="127.0.0.1", port=1), loop, now=lambda: 0.0)
    connection, transport = Connection(backend, now=lambda: 0.0), Notes()
    connection.connection_made(transport)
    for _ in range(2):
        reader = SlowReader()
        reader.connection = connection
        connection.send(reader, [b"GET / HTTP/1.1\r\n\r\n"], fresh=True)
        connection.data_received(ANSWER)
        assert reader.ended
        assert transport.reading, "the next request's answer would never be read"
        assert backend.send(SlowReader(), [b"x"]) is connection  # it went back to the pool
