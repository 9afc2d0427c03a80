"""What the control plane and a worker say to each other over the worker's Unix socket.

Owns: the messages and their framing (a little-endian uint32 length, then MessagePack). Never: I/O.

The worker listens, the control plane connects, and connects again after either was away. The worker says Hello first.
Counts of finished requests do not travel here but in segment files (`registry.usage`), so that none is lost or counted
twice; what travels here is what is true only now.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from serving.router.table import Table

MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
_LENGTH: Final = struct.Struct("<I")


class Publish(msgspec.Struct, frozen=True, tag="publish"):
    """Down: serve by this table from now on. Answered by Applied."""

    table: Table


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Down: stop accepting, finish what is in flight, exit; after `deadline_s` exit anyway."""

    deadline_s: float
    replaced: bool = False
    """Another worker serves on: idle connections are kept for a moment, so that no request meets a closed one."""


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """Down: answer with Stats now."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """Up, once per connection."""

    worker: str
    pid: int
    started_at: float
    host: str
    port: int
    generation: int
    """0 before the first table."""
    segment: str
    """The file name of the segment being written."""


class Applied(msgspec.Struct, frozen=True, tag="applied"):
    """Up: requests that arrive from now on are served by this generation."""

    generation: int


class Stats(msgspec.Struct, frozen=True, tag="stats"):
    """Up, once a second: what is true now."""

    at: float
    """Unix time."""
    inflight: dict[str, int]
    """Replica id -> requests in flight there; replicas without any are left out."""
    oldest_started_at: float
    """Unix time at which the longest-running request had arrived; `at` where none runs. No record with an earlier
    start is still to come from this worker once its segment is read up to `flushed_bytes`."""
    flushed_bytes: int
    """How much of the current segment is in the file."""
    segment: str
    connections: int
    upstream_connections: int
    resident_bytes: int
    tokens: dict[str, int] = {}
    """`model@version` -> content events forwarded since the worker started (for tokens per second as they flow)."""
    records_lost: int = 0
    """Records that could not be written (disk full) since the worker started."""
    loop_lag_s: float = 0.0
    """The longest delay of the event loop's timer since the last Stats."""
    tls_problem: str = ""
    """Why the certificate that lies there now is not in use, and the one before still is; "" where it is."""
    waiting: dict[str, tuple[int, ...]] = {}
    """Model -> requests that wait for admission, by class: interactive, batch, shadow; models without any are left
    out."""
    cut_off: int = 0
    """Requests that a drain's deadline ended."""
    samples_taken: int = 0
    """Samples and pieces of feedback that were handed on since the worker started."""
    samples_lost: int = 0
    """Those that were dropped: the control plane was too far behind, or the disk full."""


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """Up, at once: an attempt on a replica failed for the engine's own reasons."""

    at: float
    replica: str
    error: str
    """`connect_refused`, `connect_timeout`, `reset`, `first_byte_timeout`, `status_500`, …"""


Down = Publish | Drain | Ask
Up = Hello | Applied | Stats | Failure

_encoder = msgspec.msgpack.Encoder()
_down: msgspec.msgpack.Decoder[Down] = msgspec.msgpack.Decoder(Down)
_up: msgspec.msgpack.Decoder[Up] = msgspec.msgpack.Decoder(Up)


def encode(message: Down | Up) -> bytes:
    """The framed bytes of one message."""
    payload = _encoder.encode(message)
    return _LENGTH.pack(len(payload)) + payload


class Framer:
    """Cuts a byte stream into payloads. Raises ValueError where one claims more than MESSAGE_BYTES_MAX."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._buffer += data
        payloads: list[bytes] = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MESSAGE_BYTES_MAX:
                raise ValueError(f"a message claims {length} bytes, more than {MESSAGE_BYTES_MAX}")
            stop = _LENGTH.size + length
            if len(self._buffer) < stop:
                break
            payloads.append(bytes(self._buffer[_LENGTH.size : stop]))
            del self._buffer[:stop]
        return payloads


def decode_down(payload: bytes) -> Down:
    """A message of the control plane. Raises msgspec.ValidationError."""
    return _down.decode(payload)


def decode_up(payload: bytes) -> Up:
    """A message of a worker. Raises msgspec.ValidationError."""
    return _up.decode(payload)
