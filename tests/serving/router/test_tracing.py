"""W3C trace context in the router: whose trace a request belongs to, and what the engine is told."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest
from engines.fixtures import FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from router_harness import RouterProcess, model, version

from registry.usage import RequestRecord
from serving.router.protocol import Applied, Publish
from serving.router.table import Table, Tracing
from serving.router.tracing import Tracer, read

Start = Callable[..., FakeEngine]
TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = b"00f067aa0ba902b7"
SAMPLED = b"00-%b-%b-01" % (TRACE, SPAN)
UNSAMPLED = b"00-%b-%b-00" % (TRACE, SPAN)


def fresh() -> RequestRecord:
    return RequestRecord("r", 0.0, 0.0, "/v1/chat/completions", "", "", "", "failed", 0)


def begin(headers: dict[bytes, bytes], sample: int = 10_000) -> RequestRecord:
    record = fresh()
    Tracer(sample, random.Random(7)).begin(record, headers)
    return record


def test_a_sampled_trace_is_joined_by_a_span_of_our_own() -> None:
    headers = {b"traceparent": SAMPLED, b"tracestate": b"vendor=1"}
    record = begin(headers, sample=0)  # the client has decided
    assert (record.trace_id, record.parent_span_id) == (TRACE.decode(), SPAN.decode())
    assert re.fullmatch(r"[0-9a-f]{16}", record.span_id)
    assert record.span_id != SPAN.decode()
    assert headers == {
        b"traceparent": b"00-%b-%b-01" % (TRACE, record.span_id.encode()),
        b"tracestate": b"vendor=1",
    }


def test_a_trace_that_is_not_sampled_passes_through_as_it_came() -> None:
    headers = {b"traceparent": UNSAMPLED, b"tracestate": b"vendor=1"}
    assert begin(headers).span_id == ""
    assert headers == {b"traceparent": UNSAMPLED, b"tracestate": b"vendor=1"}


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"garbage",
        SAMPLED.upper(),
        SAMPLED + b"-more",
        b"ff" + SAMPLED[2:],
        b"00-%b-%b-01" % (b"0" * 32, SPAN),
        b"00-%b-%b-01" % (TRACE, b"0" * 16),
        SAMPLED[:-1],
        SAMPLED + b"\r\nx-evil: 1",
    ],
)
def test_an_invalid_context_goes_no_further(value: bytes) -> None:
    headers = {b"traceparent": value, b"tracestate": b"vendor=1"}
    assert begin(headers, sample=0).span_id == ""
    assert headers == {}
    headers = {b"traceparent": value, b"tracestate": b"vendor=1"}
    record = begin(headers)
    assert record.parent_span_id == ""
    assert headers == {b"traceparent": f"00-{record.trace_id}-{record.span_id}-01".encode()}


def test_a_later_version_of_the_header_is_understood_as_far_as_it_can_be() -> None:
    assert read(b"cc" + SAMPLED[2:] + b"-what-the-future-brings") == (TRACE, SPAN, 1)


@given(st.binary(max_size=80))
def test_no_header_breaks_the_reader(value: bytes) -> None:
    found = read(value)
    assert found is None or len(found[0]) == 32


def test_requests_without_a_trace_are_sampled() -> None:
    tracer, rng = Tracer(2500, random.Random(3)), 0
    for _ in range(4000):
        record = fresh()
        tracer.begin(record, {})
        rng += bool(record.span_id)
    assert 900 < rng < 1100


def test_the_engine_sees_our_span_as_its_parent_and_so_does_the_record(
    router: RouterProcess, fake_engine: Start
) -> None:
    engine = fake_engine("--events", "2")
    table = Table(
        generation=1, models={"assistant": model([version("v1", [engine.port])], {"v1": 10_000})}, tracing=Tracing()
    )
    router.control.send(Publish(table))
    assert router.control.wait(Applied).generation == 1
    headers = {"traceparent": SAMPLED.decode(), "tracestate": "vendor=1"}
    assert router.chat(headers=headers).status_code == 200
    assert router.chat().status_code == 200
    joined, begun = router.records(2)
    assert (joined.trace_id, joined.parent_span_id) == (TRACE.decode(), SPAN.decode())
    assert begun.parent_span_id == ""
    assert len(begun.trace_id) == 32
    seen = [dict(one["headers"]) for one in engine.stats()["requests"]]
    assert seen[0]["traceparent"] == f"00-{joined.trace_id}-{joined.span_id}-01"
    assert seen[0]["tracestate"] == "vendor=1"
    assert seen[1]["traceparent"] == f"00-{begun.trace_id}-{begun.span_id}-01"


def test_without_tracing_the_headers_pass_through_untouched(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--events", "2")
    router.serve(engine.port)
    assert router.chat(headers={"traceparent": SAMPLED.decode(), "tracestate": "vendor=1"}).status_code == 200
    (record,) = router.records(1)
    assert (record.trace_id, record.span_id) == ("", "")
    (seen,) = [dict(one["headers"]) for one in engine.stats()["requests"]]
    assert (seen["traceparent"], seen["tracestate"]) == (SAMPLED.decode(), "vendor=1")
