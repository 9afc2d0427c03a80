"""Frames on the pipe between the evaluation and a model's process: JSON, and an array of float32 where there is one.

Owns: the framing, for both ends. Never: what the messages mean. Standard library and numpy only.

    4 bytes  length of the JSON, little-endian
    8 bytes  length of the array's bytes
    the JSON (UTF-8), then the array, row after row
"""

from __future__ import annotations

import json
import struct
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

HEADER: Final = struct.Struct("<IQ")
JSON_BYTES_MAX: Final = 1 << 28
ARRAY_BYTES_MAX: Final = 1 << 32

Rows = NDArray[np.float32]


class BrokenFrameError(Exception):
    """The other end stopped within a frame, or sends what is none."""


def write(pipe: IO[bytes], message: dict[str, Any], rows: Rows | None = None) -> None:
    """Send one frame. Raises BrokenPipeError where nobody reads."""
    text = json.dumps(message).encode()
    pipe.write(HEADER.pack(len(text), 0 if rows is None else rows.nbytes) + text)
    if rows is not None:
        pipe.write(np.ascontiguousarray(rows, dtype=np.float32).data.cast("B"))
    pipe.flush()


def read(pipe: IO[bytes]) -> tuple[dict[str, Any], Rows | None] | None:
    """The next frame; None where the other end has closed the pipe. Raises BrokenFrameError.

    The array comes as it was sent where the message has `columns`, else flat.
    """
    head = pipe.read(HEADER.size)
    if not head:
        return None
    if len(head) < HEADER.size:
        raise BrokenFrameError("the pipe ended within a frame")
    text_bytes, array_bytes = HEADER.unpack(head)
    if text_bytes > JSON_BYTES_MAX or array_bytes > ARRAY_BYTES_MAX or array_bytes % 4:
        raise BrokenFrameError("the pipe carries what is no frame")
    message = json.loads(_exactly(pipe, text_bytes))
    if not array_bytes:
        return message, None
    flat: Rows = np.frombuffer(_exactly(pipe, array_bytes), dtype=np.float32)
    return message, flat.reshape(-1, message["columns"]) if "columns" in message else flat


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    data = pipe.read(count)
    if len(data) < count:
        raise BrokenFrameError("the pipe ended within a frame")
    return data
