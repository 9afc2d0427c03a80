"""A streamed completion, read as it arrives: text, tool calls, usage, and when the first of them came.

Owns: the events of both endpoints (chat and plain completions) and what makes a stream whole. Never: sending, retrying.

Most events are read by a typed decoder in a few microseconds, so that reading costs the engine nothing. What it does
not take (a character that an engine cut into two escapes) goes through the standard library's.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec


class PassingError(Exception):
    """A failure that may be gone next time."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Completion:
    """An answer and what it took. Times are seconds since the attempt that succeeded was sent; of a conversation of
    several turns, the first turn's time to first token and the sum of the turns' latencies and tokens."""

    text: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    turns: tuple[str, ...] = ()
    """The answers to the turns before the last."""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_s: float | None = None
    latency_s: float = 0.0
    started_at: float = 0.0
    attempts: int = 1
    answered_by: str = ""


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Event(msgspec.Struct):
    """What is read of a chunk; every field may be absent or null."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_events = msgspec.json.Decoder(_Event)


@dataclass(slots=True)
class _Calls:
    """Tool calls as they grow: the first piece names the function, the later ones add to its arguments."""

    by_index: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add(self, pieces: list[_ToolCall]) -> None:
        for piece in pieces:
            empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            call = self.by_index.setdefault(piece.index, empty)
            call["id"] = piece.id or call["id"]
            if piece.function:
                call["function"]["name"] += piece.function.name or ""
                call["function"]["arguments"] += piece.function.arguments or ""

    def done(self) -> tuple[dict[str, Any], ...]:
        return tuple(self.by_index[index] for index in sorted(self.by_index))


async def read(chunks: AsyncIterator[bytes], completion: Completion, began: float) -> None:
    """Take the stream in; `began` is when the request was sent (time.perf_counter).

    Raises PassingError where it is cut or carries an error.
    """
    parts: list[str] = []
    calls = _Calls()
    async for line in lines(chunks):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            break
        event = _event(data)
        if event.error:
            raise PassingError(message_of({"error": event.error}))
        for choice in event.choices or ():
            piece = choice.delta.content if choice.delta else choice.text
            more = choice.delta.tool_calls if choice.delta else None
            if (piece or more) and completion.ttft_s is None:
                completion.ttft_s = time.perf_counter() - began
            if piece:
                parts.append(piece)
            if more:
                calls.add(more)
            completion.finish_reason = choice.finish_reason or completion.finish_reason
        if event.usage:
            completion.prompt_tokens = event.usage.prompt_tokens or completion.prompt_tokens
            completion.completion_tokens = event.usage.completion_tokens or completion.completion_tokens
    if not completion.finish_reason:
        raise PassingError("the stream was cut before its end")
    text = "".join(parts)
    # An engine may cut a character into two escapes, in two events: half of one alone has no place in UTF-8.
    completion.text = text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    completion.tool_calls = calls.done()


def _event(data: bytes) -> _Event:
    try:
        return _events.decode(data)
    except msgspec.DecodeError:  # half a character among them, which only the standard library takes
        try:
            return msgspec.convert(json.loads(data), _Event)
        except ValueError as error:  # neither JSON nor, by msgspec.ValidationError, an event
            raise PassingError(f"the stream carries what is no event of a chat completion ({error})") from None


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The stream's lines. httpx's own end at U+2028 and other characters too, which an answer may hold."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line
    yield rest


def message_of(answer: Any) -> str:
    """The message of an OpenAI error envelope, "" where there is none."""
    error = answer.get("error", "") if isinstance(answer, dict) else ""
    return str(error.get("message", "") if isinstance(error, dict) else error)
