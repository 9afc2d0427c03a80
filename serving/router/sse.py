"""Reading a stream of server-sent events in passing: when content begins, what was used, how it ended.

Owns: cutting bytes at event boundaries and the few facts noted of each event. Never: I/O, clocks, rebuilding an event.

Bytes go on as they came, in whole events. Once content has begun, an event without a marker (usage, finish reason,
error, end) is only counted: quotes inside JSON strings are escaped, so a marker with its quotes cannot be content.
"""

from __future__ import annotations

from typing import Final

import msgspec

from serving.router.events import Event, decode
from serving.router.openai_wire import FINISH, Usage

TAIL_BYTES_MAX: Final = 256 * 1024
"""An event larger than this goes on in pieces (no event that is kept from a client is near as large)."""


_CONTENT_TYPES: Final = (".delta", "content_block_delta")
"""How the types of events with content end: responses, messages, transcripts, speech."""
_END_TYPES: Final = (
    "response.completed",
    "response.incomplete",
    "message_stop",
    "transcript.text.done",
    "speech.audio.done",
)


class Scanner:
    """Facts of one stream, as far as it has been fed."""

    __slots__ = (
        "_crlf",
        "_delta_line",
        "_tail",
        "content_events",
        "done",
        "error",
        "error_event",
        "error_status",
        "finish_reason",
        "hide_usage",
        "started",
        "usage",
    )

    def __init__(self, *, hide_usage: bool) -> None:
        self.hide_usage = hide_usage
        """Keep the event that carries only usage to ourselves: the client did not ask for it."""
        self.started = False
        """Content has begun."""
        self.content_events = 0
        self.usage: Usage | None = None
        self.finish_reason = ""
        self.done = False
        """The stream said that it is complete."""
        self.error = False
        """The engine reported an error in band."""
        self.error_event = b""
        """That event, kept back: whether the client gets to see it is not decided here."""
        self.error_status = 0
        """Its code where it is an HTTP status."""
        self._tail = b""
        self._crlf = False
        self._delta_line = b""
        """`event: …` of this stream's events with content, where they have such a line."""

    @property
    def ended(self) -> bool:
        """Whether the stream said how it ended; one that did not was cut."""
        return self.done or bool(self.finish_reason)

    def feed(self, data: bytes) -> bytes:
        """The bytes to forward now: all whole events of what has come, less what the client did not ask for."""
        if self._tail:
            data = self._tail + data
            self._tail = b""
        if not data.endswith(b"\n\n"):
            data = self._whole_events(data)
            if not data:
                return b""
        if self._delta_line and data.count(self._delta_line) == (events := data.count(b"\n\n")):
            self.content_events += events  # a line end within JSON is escaped: each of them is such an event
            return data
        if (
            self.started
            and not self._crlf
            and b'"usage":{' not in data
            and b'"usage": {' not in data
            and b'"finish_reason":"' not in data
            and b'"finish_reason": "' not in data
            and b"[DONE]" not in data
            and b'"error"' not in data
            and b"event:" not in data
            and data[0] != 58
        ):
            self.content_events += data.count(b"\n\n")
            return data
        return self._inspect(data)

    def rest(self) -> bytes:
        """What came after the last whole event at the stream's end: some engines leave out the last blank line."""
        tail, self._tail = self._tail, b""
        return b"" if not tail or self._note(tail) else tail

    def restart(self) -> None:
        """The stream goes on from another replica: half an event of the first one is no part of it."""
        self._tail = b""
        self._crlf = False
        self.error = False
        self.error_event = b""

    def _whole_events(self, data: bytes) -> bytes:
        if self._crlf or b"\r\n" in data:
            self._crlf = True
            cut = data.rfind(b"\r\n\r\n") + 4
            cut = cut if cut >= 4 else 0
        else:
            cut = data.rfind(b"\n\n") + 2
            cut = cut if cut >= 2 else 0
        if len(data) - cut > TAIL_BYTES_MAX:
            return data
        self._tail = data[cut:]
        return data[:cut]

    def _inspect(self, data: bytes) -> bytes:
        separator = b"\r\n\r\n" if self._crlf else b"\n\n"
        kept: list[bytes] = []
        dropped = False
        for event in data.split(separator):
            if not event:
                continue
            if self._note(event):
                dropped = True
            else:
                kept.append(event)
        if not dropped:
            return data
        return separator.join([*kept, b""]) if kept else b""

    def _note(self, event: bytes) -> bool:
        """Note what one event says; whether it is kept back."""
        start = event.find(b"data:")
        if start < 0:
            return False
        payload = event[start + 5 :].strip()
        if payload == b"[DONE]":
            self.done = True
            return False
        try:
            seen = decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False  # not ours to judge: it goes on as it came
        if seen.type:
            self._note_typed(event, seen)
            return False
        if seen.error is not None:
            self._note_error(event, seen.error)
            return True
        return self._note_chunk(seen)

    def _note_error(self, event: bytes, error: object) -> None:
        code = error.get("code") if isinstance(error, dict) else None
        self.error = True
        self.error_event = event + b"\n\n"
        self.error_status = code if isinstance(code, int) else 0

    def _note_chunk(self, seen: Event) -> bool:
        if seen.usage is not None:
            self.usage = seen.usage
        for choice in seen.choices or ():
            delta = choice.delta
            if choice.text or (
                delta is not None
                and (
                    delta.content
                    or delta.reasoning_content
                    or delta.reasoning
                    or delta.tool_calls
                    or delta.refusal
                    or delta.function_call
                )
            ):
                self.started = True
                self.content_events += 1
            if choice.finish_reason:
                self.finish_reason = choice.finish_reason
        return self.hide_usage and seen.usage is not None and not seen.choices

    def _note_typed(self, event: bytes, seen: Event) -> None:
        """Events of the responses and messages APIs, which name their type. None of them is ever kept back."""
        if seen.type.endswith(_CONTENT_TYPES) and seen.delta:
            self.started = True
            self.content_events += 1
            if event.startswith(b"event: ") and not self._crlf:
                self._delta_line = event[: event.index(b"\n") + 1]
        for part in (seen.response, seen.message, seen):
            if part is not None and not isinstance(part, str) and part.usage is not None:
                self.usage = _merged(self.usage, part.usage)
        if seen.type == "message_delta" and isinstance(seen.delta, dict):
            said = str(seen.delta.get("stop_reason") or "")
            self.finish_reason = FINISH.get(said, said)
        if seen.type in _END_TYPES:
            self.done = True
            said = seen.response.finish_reason if seen.response is not None else self.finish_reason
            self.finish_reason = said or "stop"
        if seen.type in ("error", "response.failed"):
            self.error = True


def _merged(before: Usage | None, after: Usage) -> Usage:
    """The messages API reports input with the first event and output with the last."""
    if before is None:
        return after
    given = {name: value for name in Usage.__struct_fields__ if (value := getattr(after, name)) is not None}
    return msgspec.structs.replace(before, **given)
