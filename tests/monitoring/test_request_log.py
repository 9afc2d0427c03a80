"""The log of requests: what is kept, who asks for what, and that phases are a request's whole time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from monitoring_records import record

from monitoring.request_log import FAULTY, RequestLog, RequestQuery, phases, tokens_per_second
from registry.usage import RequestRecord

T0 = 1_700_000_000.0


def log(*records: RequestRecord, kept: int = 100) -> RequestLog:
    found = RequestLog(kept)
    found.add(records)
    return found


def ids(of: RequestLog, **wanted: Any) -> list[str]:
    return [one.request_id for one in of.page(RequestQuery(**wanted)).records]


def test_the_newest_come_first_and_the_oldest_are_forgotten() -> None:
    kept = log(*[record(request_id=f"r{i}", started_at=T0 + i) for i in range(5)], kept=3)
    assert ids(kept) == ["r4", "r3", "r2"]
    page = kept.page(RequestQuery(limit=2))
    assert [one.request_id for one in page.records] == ["r4", "r3"]
    assert page.more
    assert page.kept == 3
    assert page.oldest == T0 + 2 + 2.5
    assert ids(kept, before=page.records[-1].ended_at) == ["r2"]


def test_requests_are_found_by_version_arm_outcome_key_and_segment() -> None:
    kept = log(
        record(request_id="plain"),
        record(request_id="fallback", version="v2", assigned="v1", key_id="mk_1", segment="eu"),
        record(request_id="bad", status=400),
        record(request_id="lost", outcome="failed", status=502),
        record(request_id="copy", shadow_of="plain", version="v2"),
        record(request_id="other", model="tiny"),
    )
    assert ids(kept, model="tiny") == ["other"]
    assert ids(kept, version="v2") == ["fallback"]
    assert ids(kept, version="v2", copies=True) == ["fallback", "copy"]
    assert ids(kept, arm="v1", key="mk_1") == ["fallback"]
    assert ids(kept, segment="eu") == ["fallback"]
    assert ids(kept, outcome="client_error") == ["bad"]
    assert ids(kept, outcome=FAULTY) == ["bad", "lost"]
    assert [one.request_id for one in kept.find("plain")] == ["plain", "copy"]
    assert kept.find("unknown") == []


def test_the_slowest_come_first_where_that_is_asked() -> None:
    kept = log(*[record(request_id=f"r{s}", duration_s=s) for s in (1.0, 9.0, 4.0)])
    assert ids(kept, slowest=True) == ["r9.0", "r4.0", "r1.0"]


def test_an_ordinary_stream_divides_into_router_first_token_answer_and_end() -> None:
    found = phases(record(queued_s=0.0))
    assert [one.name for one in found] == ["router", "first token", "answer", "end"]
    assert found[1].seconds == pytest.approx(0.399)
    assert found[2].seconds == pytest.approx(2.0)
    assert tokens_per_second(record()) == pytest.approx(10.0)


def test_waiting_and_retries_have_phases_of_their_own() -> None:
    found = phases(record(queued_s=0.1, overhead_s=0.05, dispatched_s=0.3, attempts=2, streamed=False))
    assert [(one.name, round(one.seconds, 3)) for one in found] == [
        ("queue", 0.1),
        ("router", 0.05),
        ("retries", 0.15),
        ("answer", 2.2),
    ]
    assert tokens_per_second(record(streamed=False)) is None


def test_a_request_that_no_engine_took_waited_and_was_refused() -> None:
    found = phases(record(queued_s=1.0, duration_s=1.2, dispatched_s=0.0, attempts=0, first_token_s=0.0))
    assert [(one.name, round(one.seconds, 3)) for one in found] == [("queue", 1.0), ("router", 0.2)]
    assert phases(record(duration_s=0.0)) == ()


seconds = st.floats(0, 100, allow_nan=False)


@given(
    duration_s=seconds,
    queued_s=seconds,
    overhead_s=seconds,
    dispatched_s=seconds,
    first_token_s=seconds,
    last_token_s=seconds,
    attempts=st.integers(0, 4),
    streamed=st.booleans(),
)
def test_phases_cover_the_duration_without_gaps_whatever_a_record_says(**said: Any) -> None:
    at = 0.0
    for one in phases(record(**said)):
        assert one.start_s == pytest.approx(at, abs=1e-9)  # an end less its start, added again, may be rounded
        assert one.seconds > 0
        at = one.start_s + one.seconds
        assert at <= said["duration_s"] + 1e-9
    assert at == pytest.approx(said["duration_s"])
