"""Spans for OpenTelemetry, made from the records of finished requests and exported over OTLP/HTTP.

Owns: a record's span (names and attributes by the GenAI semantic conventions), the queue, the thread that exports.
Never: holding up anybody. Where the receiver is slow or away, spans are dropped and counted; nothing else notices.

OpenTelemetry is imported when tracing is configured, not before.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from registry.terminal import NotThereError
from registry.usage import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

log = logging.getLogger("modelyard.spans")

QUEUE_MAX: Final = 8192
BATCH_MAX: Final = 512
PAUSE_S: Final = 0.5
TIMEOUT_S: Final = 5.0
STOP_S: Final = 2.0
OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""Endpoint -> `gen_ai.operation.name`; an endpoint without one is its own last words."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where clients reach the router."""

    host: str = ""
    port: int = 0
    """0 where the system chose it."""

    def attributes(self) -> dict[str, str | int]:
        """`server.address` and `server.port`; an address that means all of them is this machine's name."""
        address = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        found: dict[str, str | int] = {"server.address": address, "server.port": self.port}
        return {name: value for name, value in found.items() if value}


class SpanExporter:
    """Takes records, on one thread at a time, and exports those that have a span, in batches, on a thread of its own.

    Raises NotThereError where OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str, *, version: str, place: Place | None = None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        except ImportError:
            raise missing() from None
        self.endpoint = endpoint
        self.place = place or Place()
        self._resource = Resource.create({"service.name": "modelyard", "service.version": version})
        self._exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces", timeout=TIMEOUT_S)
        self._queue: deque[RequestRecord] = deque()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self.exported = 0
        self.dropped = 0
        """Spans that the queue had no room for or the receiver did not take."""
        self.problem = ""
        """Why the last batch was not taken; "" where it was."""
        self._thread: threading.Thread | None = None

    def take(self, records: Sequence[RequestRecord]) -> None:
        """Queue the records that have a span. Never waits."""
        for record in records:
            if not record.span_id:
                continue
            if len(self._queue) >= QUEUE_MAX:
                self.dropped += 1
            else:
                self._queue.append(record)
        if self._queue:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
                self._thread.start()
            self._wake.set()

    def close(self) -> None:
        """Export what waits, for at most STOP_S; what is left then is dropped. Blocking."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(STOP_S)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            self._stop.wait(PAUSE_S)  # a batch grows meanwhile
            while self._queue and not self._stop.is_set():
                self._export_batch()
        limit = time.monotonic() + STOP_S
        while self._queue and time.monotonic() < limit:
            self._export_batch()

    def _export_batch(self) -> None:
        self._export([self._queue.popleft() for _ in range(min(BATCH_MAX, len(self._queue)))])

    def _export(self, records: Sequence[RequestRecord]) -> None:
        try:
            done = (
                self._exporter.export([span_of(record, self._resource, self.place) for record in records]).name
                == "SUCCESS"
            )
        except Exception:
            log.exception("%d spans could not be made", len(records))
            done = False
        if done:
            self.exported += len(records)
            self.problem = ""
        else:
            self.dropped += len(records)
            if not self.problem:
                log.warning("spans are being dropped: %s takes none", self.endpoint)
            self.problem = f"{self.endpoint} takes no spans: {self.dropped} were dropped"


def missing() -> NotThereError:
    """What to say where the extra is not installed."""
    return NotThereError(
        "server.tracing wants OpenTelemetry, which is not installed: pip install '.[otel]' in the project's "
        "folder, or take server.tracing out of the configuration"
    )


def operation_of(endpoint: str) -> str:
    """The value of `gen_ai.operation.name`."""
    return OPERATIONS.get(endpoint, endpoint.removeprefix("/v1/").replace("/", "_"))


def error_type(record: RequestRecord) -> str:
    """The value of `error.type`: why a request did not end well; "" where it did."""
    if record.outcome == "completed":
        return record.error or (str(record.status) if record.status >= 400 else "")
    return record.error or record.outcome


def span_of(record: RequestRecord, resource: Any, place: Place) -> ReadableSpan:
    """The span of a finished request: of kind SERVER, a child of the client's span where there is one.

    Events mark the last attempt's dispatch and the first and last content of a stream.
    """
    from opentelemetry.sdk.trace import Event, ReadableSpan  # noqa: PLC0415
    from opentelemetry.trace import SpanContext, SpanKind, TraceFlags  # noqa: PLC0415
    from opentelemetry.trace.status import Status, StatusCode  # noqa: PLC0415

    trace, flags = int(record.trace_id, 16), TraceFlags(TraceFlags.SAMPLED)
    parent = None
    if record.parent_span_id:
        parent = SpanContext(trace, int(record.parent_span_id, 16), is_remote=True, trace_flags=flags)
    events = [
        Event(name, timestamp=_ns(record.started_at + offset))
        for name, offset in (
            ("modelyard.dispatched", record.dispatched_s),
            ("gen_ai.first_token", record.first_token_s),
            ("gen_ai.last_token", record.last_token_s),
        )
        if offset
    ]
    failed = record.outcome in ("failed", "truncated") or record.status >= 500
    operation = operation_of(record.endpoint)
    return ReadableSpan(
        name=f"{operation} {record.model}".strip(),
        context=SpanContext(trace, int(record.span_id, 16), is_remote=False, trace_flags=flags),
        parent=parent,
        resource=resource,
        attributes={**attributes_of(record, operation), **place.attributes()},
        events=events,
        kind=SpanKind.SERVER,
        status=Status(StatusCode.ERROR, record.error) if failed else Status(StatusCode.UNSET),
        start_time=_ns(record.started_at),
        end_time=_ns(record.ended_at),
    )


def attributes_of(record: RequestRecord, operation: str) -> dict[str, str | int | float | bool]:
    """What a span says of its request; what is not known is left out."""
    found: dict[str, str | int | float | bool] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "modelyard",
        "http.request.method": "POST",
        "url.path": record.endpoint,
        "modelyard.request_id": record.request_id,
        "modelyard.outcome": record.outcome,
        "modelyard.attempts": record.attempts,
        "modelyard.generation": record.generation,
        "modelyard.streamed": record.streamed,
        "modelyard.overhead_s": record.overhead_s,
    }
    optional: dict[str, str | int | float] = {
        "http.response.status_code": record.status,
        "gen_ai.request.model": record.model,
        "gen_ai.response.model": f"{record.model}@{record.version}" if record.version else "",
        "gen_ai.server.time_to_first_token": record.first_token_s,
        "error.type": error_type(record),
        "modelyard.version": record.version,
        "modelyard.assigned_version": record.assigned,
        "modelyard.replica": record.replica,
        "modelyard.segment": record.segment,
        "modelyard.priority": record.priority,
        "modelyard.queued_s": record.queued_s,
        "modelyard.continuations": record.continuations,
        "modelyard.shadow_of": record.shadow_of,
        "modelyard.key_id": record.key_id,
    }
    if record.usage_source != "none":
        optional["gen_ai.usage.input_tokens"] = record.prompt_tokens
        found["gen_ai.usage.output_tokens"] = record.completion_tokens
        optional["gen_ai.usage.cache_read.input_tokens"] = record.cached_tokens
    found |= {name: value for name, value in optional.items() if value}
    if record.finish_reason:
        found["gen_ai.response.finish_reasons"] = (record.finish_reason,)  # type: ignore[assignment]
    return found


def _ns(at: float) -> int:
    return int(at * 1e9)
