"""What is read of one event of a stream: the fields that say what it is, and no others.

Owns: those shapes. Never: I/O, what follows from them. Apart from the scanner because msgspec reads their annotations,
which compiled modules (`make native`) do not keep.
"""

from __future__ import annotations

from typing import Final

import msgspec

from serving.router.openai_wire import Responded, Usage


class Delta(msgspec.Struct, gc=False):
    content: str | list[object] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[object] | None = None
    function_call: object | None = None


class Choice(msgspec.Struct, gc=False):
    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class Message(msgspec.Struct, gc=False):
    """`message` of the messages API."""

    usage: Usage | None = None


class Event(msgspec.Struct, gc=False):
    choices: list[Choice] | None = None
    usage: Usage | None = None
    type: str = ""
    delta: object | None = None
    response: Responded | None = None
    message: Message | str | None = None
    error: object | None = None


decode: Final = msgspec.json.Decoder(Event).decode
"""An event's payload. Raises msgspec.DecodeError, UnicodeDecodeError or RecursionError where it is none."""
