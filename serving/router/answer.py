"""An engine's answer on its way back to the client: its head, its framing, and what it says of itself in passing.

Owns: when the answer is committed (the client has seen some of it), the bytes that are held back until then, what the
record learns from it. Never: choosing replicas, knowing connections to engines, ending a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from registry.usage import RequestRecord
from serving.errors import envelope
from serving.router.http1 import status_line
from serving.router.openai_wire import Usage, read_answer
from serving.router.snapshot import VersionState
from serving.router.sse import Scanner

if TYPE_CHECKING:
    from serving.router.http1 import Client, Request

HELD_BYTES_MAX: Final = 64 * 1024
"""What is held back of a stream until its first content; a longer preamble commits."""
READ_BYTES_MAX: Final = 4 * 1024 * 1024
"""A whole answer up to this size is read for its usage."""
RETURNED: Final = frozenset(
    {b"content-type", b"content-disposition", b"retry-after", b"openai-processing-ms", b"openai-model"}
)
"""Headers of an engine that a client gets to see, beside our own."""


class Answer:
    """One attempt's answer, from its head on. `started` is when the request had arrived, on the router's clock."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_chunked",
        "_client",
        "_head",
        "_held",
        "_held_bytes",
        "_record",
        "_request",
        "_started",
        "_version",
        "committed",
        "scanner",
    )

    def __init__(
        self,
        client: Client,
        request: Request,
        record: RequestRecord,
        version: VersionState,
        *,
        started: float,
        hide_usage: bool,
        headers: list[tuple[bytes, bytes]],
    ) -> None:
        self._client = client
        self._request = request
        self._record = record
        self._version = version
        self._started = started
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._chunked = False
        self.committed = False
        self.scanner: Scanner | None = None
        self._head = self._make_head(headers, hide_usage)

    def _make_head(self, headers: list[tuple[bytes, bytes]], hide_usage: bool) -> bytes:
        record = self._record
        lines = [status_line(record.status), b"x-request-id: %b\r\n" % record.request_id.encode("ascii")]
        length = b""
        for name, value in headers:
            if name == b"content-length":
                length = value
            elif name in RETURNED:
                lines.append(b"%b: %b\r\n" % (name, value))
                if name == b"content-type" and value.startswith(b"text/event-stream"):
                    self.scanner = Scanner(hide_usage=hide_usage)
        lines.append(self._version.head)
        lines.append(b"x-modelyard-attempts: %d\r\n" % record.attempts)
        if self.scanner is not None:
            lines.append(b"cache-control: no-cache\r\nx-accel-buffering: no\r\n")
            length = b""
        if length:
            lines.append(b"content-length: %b\r\n" % length)
        elif self._request.http11:
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        else:
            self._request.keep_alive = False  # the end of the connection is the end of the answer
        return b"".join(lines)

    def feed(self, data: bytes, now: float) -> None:
        """Some of the body has come: pass it on, or hold it back until content begins."""
        scanner = self.scanner
        if scanner is None:
            self._body_bytes += len(data)
            if self._body_bytes <= READ_BYTES_MAX:
                self._body.append(data)
            self._forward(data)
            return
        before = scanner.content_events
        data = scanner.feed(data)
        if scanner.content_events != before:
            self._note_events(scanner.content_events - before, now)
        if not data:
            return
        if self.committed:
            self._forward(data)
            return
        self._held.append(data)
        self._held_bytes += len(data)
        if scanner.started or scanner.ended or scanner.error or self._held_bytes > HELD_BYTES_MAX:
            self._forward(b"".join(self._held))

    def end(self) -> bool:
        """The engine's answer has ended. Returns whether it was whole; one that was not is still open."""
        scanner = self.scanner
        if scanner is None:
            if not self.committed:
                self._forward(b"")
            self._read_body()
        else:
            rest = scanner.rest() if self.committed else b"".join([*self._held, scanner.rest()])
            if rest or not self.committed:
                self._forward(rest)
            self.note_stream()
            if not (scanner.ended or scanner.error or self._record.status >= 400):
                return False
        self._close()
        return True

    def truncate(self, code: str, message: str) -> None:
        """End a committed answer so that it cannot pass for a whole one: in band where it is a stream."""
        if self.scanner is None:
            self._client.abort()
            return
        self.note_stream()
        self._forward(b"data: " + envelope(502, message, code=code) + b"\n\n")
        self._request.keep_alive = False
        self._close()

    def note_stream(self) -> None:
        """Put into the record what the stream has said so far; events stand in for usage that it has not given."""
        scanner, record = self.scanner, self._record
        if scanner is None:
            return
        record.events = scanner.content_events
        record.finish_reason = scanner.finish_reason
        if scanner.usage is not None:
            self._note_usage(scanner.usage)
        elif scanner.content_events:
            record.usage_source = "counted"
            record.completion_tokens = scanner.content_events

    # --- inner ---

    def _read_body(self) -> None:
        answer = read_answer(b"".join(self._body)) if self._body else None
        if answer is not None:
            self._record.finish_reason = answer.finish_reason
            if answer.usage is not None:
                self._note_usage(answer.usage)

    def _note_usage(self, usage: Usage) -> None:
        record = self._record
        record.prompt_tokens = usage.prompt
        record.cached_tokens = usage.cached
        record.completion_tokens = usage.completion
        record.usage_source = "engine"

    def _note_events(self, count: int, now: float) -> None:
        record = self._record
        offset = now - self._started
        if not record.first_token_s:
            record.first_token_s = offset
        else:
            record.gap_max_s = max(record.gap_max_s, offset - record.last_token_s)
        record.last_token_s = offset
        self._version.tally.events += count

    def _forward(self, data: bytes) -> None:
        """Write some of the answer, behind its head where that has not gone yet."""
        self._record.response_bytes += len(data)
        if self._chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if not self.committed:
            self.committed = True
            connection = b"" if self._client.keeps_alive(self._request) else b"connection: close\r\n"
            data = b"%b%b\r\n%b" % (self._head, connection, data)
        self._client.write(data)

    def _close(self) -> None:
        if self._chunked:
            self._client.write(b"0\r\n\r\n")
