"""Spans as a receiver gets them: a real OTLP/HTTP server that decodes what the exporter sends."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_access_log import record
from yard_harness import until

from registry.terminal import NotThereError
from serving.control.spans import QUEUE_MAX, SpanExporter

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `otel` is not installed")
ROOT = Path(__file__).resolve().parents[3]
TRACE, SPAN, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "b7ad6b7169203331"


class Receiver(ThreadingHTTPServer):
    """An OTLP receiver: `spans` are those that it was sent; with a `status` other than 200 it takes none."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.spans: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        self.status = 200
        self.silent = False
        self.let_go = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        body = self.rfile.read(int(self.headers["content-length"]))
        if self.server.silent:
            self.server.let_go.wait(60)
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.path == "/v1/traces"
        if self.server.status == 200:
            message = ExportTraceServiceRequest.FromString(body)
            for group in message.resource_spans:
                self.server.resources.append(attributes(group.resource))
                self.server.spans += [span for scope in group.scope_spans for span in scope.spans]
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


def attributes(owner: Any) -> dict[str, Any]:
    found = {}
    for one in owner.attributes:
        value = getattr(one.value, one.value.WhichOneof("value"))
        found[one.key] = [item.string_value for item in value.values] if hasattr(value, "values") else value
    return found


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def exporter(receiver: Receiver) -> Iterator[SpanExporter]:
    made = SpanExporter(receiver.url, version="1.2.3")
    yield made
    made.close()


def traced(**changes: Any) -> Any:
    return record(trace_id=TRACE, span_id=SPAN, **changes)


def test_a_span_carries_the_request_by_the_genai_conventions(receiver: Receiver, exporter: SpanExporter) -> None:
    done = traced(
        parent_span_id=PARENT,
        prompt_tokens=11,
        cached_tokens=4,
        completion_tokens=5,
        usage_source="engine",
        dispatched_s=0.01,
        first_token_s=0.05,
        last_token_s=0.1,
        attempts=2,
        streamed=True,
        finish_reason="stop",
    )
    exporter.take([record(), done])  # the first one was not sampled
    (span,) = until(lambda: receiver.spans)
    assert (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN, PARENT)
    assert (span.name, span.kind, span.status.code) == ("chat assistant", 2, 0)
    assert abs(span.start_time_unix_nano - 1_700_000_000_123_400_000) < 1000
    assert abs(span.end_time_unix_nano - span.start_time_unix_nano - 123_456_789) < 1000
    assert [event.name for event in span.events] == ["modelyard.dispatched", "gen_ai.first_token", "gen_ai.last_token"]
    found = attributes(span)
    assert found["gen_ai.operation.name"] == "chat"
    assert (found["gen_ai.request.model"], found["gen_ai.response.model"]) == ("assistant", "assistant@v1")
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (11, 5)
    assert found["gen_ai.response.finish_reasons"] == ["stop"]
    assert (found["modelyard.version"], found["modelyard.attempts"], found["modelyard.key_id"]) == ("v1", 2, "key_1")
    assert found["http.response.status_code"] == 200
    assert "error.type" not in found
    assert receiver.resources[0]["service.name"] == "modelyard"
    assert receiver.resources[0]["service.version"] == "1.2.3"
    assert not any("sticky" in name for name in found)


def test_a_failure_is_an_error_with_its_type(receiver: Receiver, exporter: SpanExporter) -> None:
    exporter.take([traced(outcome="truncated", error="engine_reset")])
    (span,) = until(lambda: receiver.spans)
    assert (span.status.code, span.status.message) == (2, "engine_reset")
    assert attributes(span)["error.type"] == "engine_reset"
    assert not span.parent_span_id


def test_what_waits_is_exported_by_a_close(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.control.spans.STOP_S", 30.0)  # on a busy machine it is a matter of seconds
    exporter = SpanExporter(receiver.url, version="1")
    exporter.take([traced() for _ in range(1500)])
    exporter.close()
    assert len(receiver.spans) == exporter.exported == 1500


def test_a_receiver_that_refuses_costs_spans_and_nothing_else(receiver: Receiver, exporter: SpanExporter) -> None:
    receiver.status = 400
    exporter.take([traced()])
    until(lambda: exporter.problem)
    assert exporter.dropped == 1
    receiver.status = 200
    exporter.take([traced()])
    until(lambda: receiver.spans)
    until(lambda: not exporter.problem)


def test_a_silent_receiver_holds_nobody_up_and_the_queue_is_bounded(receiver: Receiver) -> None:
    receiver.silent = True
    exporter = SpanExporter(receiver.url, version="1")
    began = time.monotonic()
    exporter.take([traced() for _ in range(QUEUE_MAX + 100)])
    assert time.monotonic() - began < 30, "it waits for no answer"
    assert exporter.dropped == 100
    began = time.monotonic()
    exporter.close()
    assert time.monotonic() - began < 30, "nor does a close, for long"
    receiver.let_go.set()


def test_neither_sdk_nor_exporter_is_imported_until_tracing_is_configured() -> None:
    heavy = ("opentelemetry.sdk", "opentelemetry.exporter")
    code = f"import sys, serving.control.yard; print([m for m in sys.modules if m.startswith({heavy})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_missing_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(NotThereError, match=r"pip install '\.\[otel\]'"):
        SpanExporter("http://127.0.0.1:1", version="1")
