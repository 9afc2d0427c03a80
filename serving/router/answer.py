"""An engine's answer on its way back to the client: its head, its framing, and what it says of itself in passing.

Owns: when the answer is committed (the client has seen some of it), the bytes that are held back until then, what the
record learns from it. Never: choosing replicas, knowing connections to engines, ending a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from registry.usage import RequestRecord
from serving.errors import stream_error
from serving.router.continuation import Partial, Resumption
from serving.router.http1 import status_line
from serving.router.openai_wire import STREAM_END, Usage, find_usage, read_answer
from serving.router.snapshot import VersionState
from serving.router.sse import Scanner

if TYPE_CHECKING:
    from serving.router.http1 import Client, Request

HELD_BYTES_MAX: Final = 64 * 1024
"""What is held back of a stream until its first content; a longer preamble commits."""
READ_BYTES_MAX: Final = 4 * 1024 * 1024
"""A whole answer up to this size is read for its usage; of a larger one the end and the beginning are."""
ENDS_BYTES: Final = 4096
RETURNED: Final = frozenset(
    {
        b"content-type",
        b"content-encoding",
        b"content-disposition",
        b"retry-after",
        b"openai-processing-ms",
        b"openai-model",
    }
)
"""Headers of an engine that a client gets to see, beside our own."""
FINISH_REASON_CHARS_MAX: Final = 64
BODILESS: Final = frozenset({204, 304})
"""Statuses whose answers end with their head: framing of a body would be read as the next answer."""


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
        "_reads",
        "_record",
        "_request",
        "_started",
        "_tail",
        "_version",
        "committed",
        "holds",
        "partial",
        "progressed_at",
        "resumption",
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
        limits: bytes = b"",
        continuable: bool = False,
        holds: bool = False,
    ) -> None:
        self._client = client
        self._request = request
        self._record = record
        self._version = version
        self._started = started
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._tail = b""
        self._reads = False
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._chunked = False
        self.committed = False
        self.holds = holds
        """Nothing goes to the client before `release`: somebody may decide otherwise at the answer's end."""
        self.scanner: Scanner | None
        self.resumption: Resumption | None = None
        """How the stream goes on where it was cut: what makes the new replica's events the old one's rest."""
        self.progressed_at = 0.0
        """When content last came, on the router's clock; 0 before any."""
        self._head = self._make_head(headers, hide_usage) + limits
        self.partial = Partial() if continuable and self.scanner is not None else None
        """What the stream has said, kept where another replica could go on."""

    def _make_head(self, headers: list[tuple[bytes, bytes]], hide_usage: bool) -> bytes:
        record = self._record
        self.scanner = None
        lines = [status_line(record.status), b"x-request-id: %b\r\n" % record.request_id.encode("ascii")]
        length = b""
        for name, value in headers:
            if name == b"content-length":
                length = value
            elif name in RETURNED:
                lines.append(b"%b: %b\r\n" % (name, value))
                self._reads = self._reads or (name == b"content-type" and value.startswith(b"application/json"))
                if name == b"content-type" and value.startswith(b"text/event-stream") and record.status not in BODILESS:
                    self.scanner = Scanner(hide_usage=hide_usage)
        lines.append(self._version.head)
        lines.append(b"x-modelyard-attempts: %d\r\n" % record.attempts)
        if self.scanner is not None:
            lines.append(b"cache-control: no-cache\r\nx-accel-buffering: no\r\n")
            length = b""
        if record.status in BODILESS:
            pass
        elif length:
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
            self.progressed_at = now
            self._feed_whole(data)
            return
        if self.resumption is not None:
            data = self.resumption.rewrite(data)
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
        if scanner.started or scanner.ended or self._held_bytes > HELD_BYTES_MAX:
            self._forward(b"".join(self._held))

    def _feed_whole(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._reads or self.holds:
            if self._body_bytes <= READ_BYTES_MAX:
                self._body.append(data)
            else:
                self._tail = (self._tail + data)[-ENDS_BYTES:]
        if not self.holds:
            self._forward(data)
        elif self._body_bytes > HELD_BYTES_MAX:
            self.release()

    def release(self) -> None:
        """Pass on what was held back of an answer that is not a stream."""
        if self.holds:
            self.holds = False
            self._forward(b"".join(self._body))

    @property
    def body(self) -> bytes:
        """An answer that is not a stream, as far as it is kept to be read."""
        return b"".join(self._body)

    def end(self) -> bool:
        """The engine's answer has ended. Returns whether it was whole; one that was not is still open."""
        scanner = self.scanner
        if scanner is None:
            if not self.committed:
                self._forward(b"")
            self._read_body()
            self._close()
            return True
        rest = scanner.rest()
        if not (scanner.ended or scanner.error or self._record.status >= 400):
            return False
        rest = rest if self.committed else b"".join([*self._held, rest])
        if rest or not self.committed:
            self._forward(rest)
        self.note_stream()
        self._close()
        return True

    def goes_on(self, resumption: Resumption) -> None:
        """Another replica continues the stream: what it says is made the rest of what the client has."""
        self.resumption = resumption
        if self.scanner is not None:
            self.scanner.restart()

    def finish(self) -> None:
        """End a stream whose engine said how it ended and then neither `[DONE]` nor anything else."""
        scanner = self.scanner
        if scanner is not None and not scanner.done:
            self._forward(STREAM_END.get(self._request.endpoint, b"data: [DONE]\n\n"))
            scanner.done = True
        self.note_stream()
        self._close()

    def pass_error(self) -> None:
        """Give the client the engine's own error, which was kept back."""
        if self.scanner is not None and self.scanner.error_event:
            event = (
                b"".join([*self._held, self.scanner.error_event]) if not self.committed else self.scanner.error_event
            )
            self.scanner.error_event = b""
            self._forward(event)

    def truncate(self, code: str, message: str) -> None:
        """End a committed answer so that it cannot pass for a whole one: in band where it is a stream."""
        if self.scanner is None:
            self._client.abort()
            return
        self.note_stream()
        self._forward(self.scanner.error_event or stream_error(self._request.endpoint, 502, message, code=code))
        if not self._chunked:
            self._request.keep_alive = False  # else the client knows where it ends, and may be asking again already
        self._close()

    def note_stream(self) -> None:
        """Put into the record what the stream has said so far; events stand in for usage that it has not given."""
        scanner, record = self.scanner, self._record
        if scanner is None:
            return
        record.events = scanner.content_events
        record.finish_reason = scanner.finish_reason[:FINISH_REASON_CHARS_MAX]
        if scanner.usage is not None:
            self._note_usage(scanner.usage)
        if scanner.content_events and not record.completion_tokens:
            record.usage_source = "counted"
            record.completion_tokens = scanner.content_events

    # --- inner ---

    def _read_body(self) -> None:
        if not self._body:
            return
        body = b"".join(self._body)
        if self._tail:
            ends = (body + self._tail)[-ENDS_BYTES:], body[:ENDS_BYTES]
            usage = find_usage(ends[0]) or find_usage(ends[1])
            if usage is not None:
                self._note_usage(usage)
            return
        answer = read_answer(body, self._request.endpoint)
        if answer is not None:
            self._record.finish_reason = answer.finish_reason[:FINISH_REASON_CHARS_MAX]
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
        self.progressed_at = now
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
        if self.partial is not None:
            self.partial.add(data)
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
