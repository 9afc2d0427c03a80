"""What one finished request used: the record that the router writes and everything else is computed from.

Owns: the record's fields and its bytes on disk (a segment file of framed records). Never: I/O, clocks.

A segment is MAGIC followed by frames; a frame is the payload's length and its CRC-32 (two little-endian uint32) and the
payload (MessagePack: an array of records, each an array of its fields in order; or, in older segments, one record by
itself). Fields are only ever appended, each with a default, so that old segments stay readable. A writer that dies may
leave a torn last frame: `scan` stops before it.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final, Literal

import msgspec

MAGIC: Final = b"MYSEG1\n"
FRAME: Final = struct.Struct("<II")
PAYLOAD_BYTES_MAX: Final = 64 * 1024

Outcome = Literal["completed", "failed", "cancelled", "truncated", "rejected"]
"""How a request ended.

completed: the engine's whole answer reached the client, whatever its status below 500 (and 501: it lacks the endpoint).
failed:    no usable answer: every attempt failed before the first content.
cancelled: the client went away first.
truncated: cut after the first content; the client was told so in band.
rejected:  refused by the router itself (bad input, unknown model, limits); no engine saw it.
"""

UsageSource = Literal["engine", "counted", "none"]
"""Where the token counts come from: the engine's own usage, events counted in passing (cancelled), nowhere."""


AnswerSource = Literal["engine", "cache"]
"""Where the answer came from: an engine, or the degraded answers kept for when none can give one."""


class RequestRecord(msgspec.Struct, array_like=True, gc=False):
    """One request, however it ended. Times are seconds; offsets count from `started_at`."""

    request_id: str
    started_at: float
    """Unix time at which the request had arrived in full (or was refused)."""
    duration_s: float
    endpoint: str
    """A path of the contract (`/v1/chat/completions`), or `other`: bounded."""
    model: str
    """The public model; "" where none was recognised."""
    version: str
    """The label of the version that answered (or was tried last); "" where none was."""
    replica: str
    outcome: Outcome
    status: int
    """The HTTP status sent; 0 where none was."""
    error: str = ""
    """A short code (`engine_reset`, `model_not_found`, …); bounded vocabulary."""
    streamed: bool = False
    attempts: int = 0
    generation: int = 0
    """The routing table in force."""
    assigned: str = ""
    """The version that the split assigned (intention to treat); differs from `version` after a fallback."""
    pinned: bool = False
    """The client named the version itself (`assistant@v2`)."""
    bucket: int = -1
    sticky: int = 0
    """A 63-bit keyed hash of the sticky key, the unit of analysis; 0 where the request carried none."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    usage_source: UsageSource = "none"
    dispatched_s: float = 0.0
    """Offset at which the last attempt was handed to an engine; 0 where none was."""
    first_token_s: float = 0.0
    """Offset of the first content token of a stream; 0 where there was none."""
    last_token_s: float = 0.0
    events: int = 0
    """Content events of a stream."""
    gap_max_s: float = 0.0
    """The longest wait between two content events."""
    overhead_s: float = 0.0
    """The router's own share: request in full -> handed to an engine, queueing excluded."""
    finish_reason: str = ""
    request_bytes: int = 0
    response_bytes: int = 0
    key_id: str = ""
    worker: str = ""
    queued_s: float = 0.0
    """How long it waited for admission."""
    priority: str = ""
    """`interactive`, `batch` or `shadow`; "" where nothing limits the model."""
    segment: str = ""
    """The segment of the route that it fell into; "" for the route's own arms."""
    shadow_of: str = ""
    """The id of the request that this one is a shadow's copy of; "" for a client's own."""
    continuations: int = 0
    """How often its stream was taken over by another replica after its first token."""
    source: AnswerSource = "engine"
    trace_id: str = ""
    """32 hexadecimal digits where the request is traced; "" where it is not."""
    span_id: str = ""
    """The span of the request here; 16 digits."""
    parent_span_id: str = ""
    """The client's span; "" where the trace begins here."""

    @property
    def ended_at(self) -> float:
        return self.started_at + self.duration_s


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[RequestRecord])
_single = msgspec.msgpack.Decoder(RequestRecord)


def frame(*records: RequestRecord) -> bytes:
    """The bytes that append `records` to a segment; many in one frame cost a third of as many frames."""
    payload = _encoder.encode(records)
    if len(payload) > PAYLOAD_BYTES_MAX and len(records) > 1:
        half = len(records) // 2
        return frame(*records[:half]) + frame(*records[half:])
    return FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def _records(payload: memoryview) -> list[RequestRecord]:
    """The records of a frame. Raises msgspec.MsgspecError where it holds none."""
    try:
        return _decoder.decode(payload)
    except msgspec.ValidationError:
        return [_single.decode(payload)]  # a frame as the first release wrote it


class CorruptSegmentError(ValueError):
    """A segment with bytes that no writer of ours leaves: not a torn tail, but damage in its middle."""


def scan(data: bytes | memoryview, *, from_start: bool) -> tuple[list[RequestRecord], int]:
    """The complete records at the front of `data`, and how many bytes they took.

    `data` is a segment from its first byte (`from_start`) or from where an earlier scan stopped. A torn last frame is
    left for the next scan. Raises CorruptSegmentError where the magic is wrong, or where a frame that is followed by
    more bytes fails its checksum.
    """
    view = memoryview(data)
    offset = 0
    if from_start:
        if len(view) < len(MAGIC):
            return [], 0
        if bytes(view[: len(MAGIC)]) != MAGIC:
            raise CorruptSegmentError("not a segment: its first bytes are not MYSEG1")
        offset = len(MAGIC)
    records: list[RequestRecord] = []
    while offset + FRAME.size <= len(view):
        length, checksum = FRAME.unpack_from(view, offset)
        stop = offset + FRAME.size + length
        if length > PAYLOAD_BYTES_MAX:
            raise CorruptSegmentError(f"the frame at byte {offset} claims {length} bytes")
        if stop > len(view):
            break
        if length == 0 and not any(view[offset:]):
            break  # a tail of zeros is what a power loss leaves of an unwritten page
        payload = view[offset + FRAME.size : stop]
        if zlib.crc32(payload) != checksum:
            if stop == len(view):
                break
            raise CorruptSegmentError(f"the frame at byte {offset} fails its checksum")
        try:
            records += _records(payload)
        except msgspec.MsgspecError as error:
            raise CorruptSegmentError(f"the frame at byte {offset} holds no record: {error}") from None
        offset = stop
    return records, offset
