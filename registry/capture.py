"""What a router worker hands to the control plane beside its records: sampled requests with their bytes, and feedback.

Owns: these shapes and their file on disk (the spool's: SPOOL_MAGIC, then frames as in a segment, one entry each).
Never: I/O, clocks, reading a body.

A file is written whole and then given its name, so that a name that ends in SUFFIX is always a whole file.
"""

from __future__ import annotations

import re
import zlib
from typing import Final

import msgspec

from registry.usage import FRAME, RequestRecord

SPOOL_MAGIC: Final = b"MYSMP1\n"
SUFFIX: Final = ".smp"
SCORES: Final = {"up": 1.0, "down": -1.0}
"""Thumbs, as numbers."""
LABEL_CHARS_MAX: Final = 64
LABEL: Final = re.compile(r"^[A-Za-z0-9_.:-]*$")
"""A label is a category, such as `wrong`, and no text."""
COMMENT_BYTES_MAX: Final = 2048
TARGET_BYTES_MAX: Final = 16 * 1024


class Captured(msgspec.Struct, array_like=True, tag="sample", gc=False):
    """One sampled request, as its client sent it and as its answer went back."""

    record: RequestRecord
    body: bytes
    """b"" where it was too large."""
    answer: bytes
    """The body of the answer, or its events; the beginning of it where it was too large."""
    content_type: str
    input_cut: bool = False
    output_cut: bool = False


class FeedbackGiven(msgspec.Struct, array_like=True, tag="feedback", gc=False):
    """What a client said of a request, as it said it."""

    request_id: str
    at: float
    """Unix time at which it came."""
    score: float
    """-1 to 1."""
    label: str = ""
    comment: str = ""
    target: str = ""
    key_id: str = ""
    """The API key that it was sent with; "" where none was needed."""


Entry = Captured | FeedbackGiven
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Entry)


def pack(entry: Entry) -> bytes:
    """One entry's frame."""
    payload = _encoder.encode(entry)
    return FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def unpack(data: bytes) -> tuple[list[Entry], str]:
    """The entries of a file, and what is wrong with the rest of it ("" where nothing is)."""
    if data[: len(SPOOL_MAGIC)] != SPOOL_MAGIC:
        return [], "not a spool's file: its first bytes are not MYSMP1"
    entries: list[Entry] = []
    offset = len(SPOOL_MAGIC)
    view = memoryview(data)
    while offset < len(view):
        if offset + FRAME.size > len(view):
            return entries, f"the frame at byte {offset} is torn"
        length, checksum = FRAME.unpack_from(view, offset)
        payload = view[offset + FRAME.size : offset + FRAME.size + length]
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return entries, f"the frame at byte {offset} is torn or fails its checksum"
        try:
            entries.append(_decoder.decode(payload))
        except msgspec.MsgspecError as error:
            return entries, f"the frame at byte {offset} holds no entry: {error}"
        offset += FRAME.size + length
    return entries, ""
