"""Shadow arms in a real worker against fake engines: the request that is copied must not notice, whatever happens."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from engines.fixtures import FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from router_harness import RouterProcess, model, standstill, until, version

from registry.models import BUCKETS
from registry.usage import RequestRecord
from serving.router.shadow import SLOT_S, SLOTS, Lane, Spending, place_of
from serving.router.table import Admission, Shadow, Timeouts

Start = Callable[..., FakeEngine]


def shadow(**caps: Any) -> Shadow:
    return Shadow(**({"label": "v2", "sample": BUCKETS, "inflight_max": 100} | caps))


def publish(router: RouterProcess, primary: int, copy: int, *shadows: Shadow, **options: Any) -> None:
    versions = [version("v1", [primary]), version("v2", [copy])]
    router.publish(model(versions, {"v1": BUCKETS, "v2": 0}, shadows=shadows or (shadow(),), **options))


def apart(records: list[RequestRecord]) -> tuple[list[RequestRecord], list[RequestRecord]]:
    return [one for one in records if not one.shadow_of], [one for one in records if one.shadow_of]


def until_running(engine: FakeEngine, count: int) -> None:
    until(lambda: engine.stats()["running"] == count)


@pytest.mark.parametrize("stream", [False, True])
def test_a_copy_is_the_same_request_and_is_joined_by_its_id(
    router: RouterProcess, fake_engine: Start, stream: bool
) -> None:
    one, two = fake_engine("--events", "3"), fake_engine("--events", "5", "--word", "shadowy")
    publish(router, one.port, two.port)
    response = router.chat(
        stream=stream, headers={"x-request-id": "r1", "x-session-id": "s", "authorization": "Bearer x"}
    )
    assert response.headers["x-modelyard-version"] == "assistant@v1"
    assert response.headers["x-modelyard-attempts"] == "1"
    assert "shadowy" not in response.text
    (primary,), (copy,) = apart(router.records(2))
    assert (copy.request_id, copy.shadow_of, copy.priority) == ("r1-shadow-v2", "r1", "shadow")
    assert (copy.version, copy.assigned, copy.replica) == ("v2", "v2", "assistant@v2/0")
    assert (copy.outcome, copy.status, copy.attempts, copy.streamed) == ("completed", 200, 1, stream)
    assert (copy.bucket, copy.sticky, copy.endpoint) == (primary.bucket, primary.sticky, primary.endpoint)
    assert (copy.prompt_tokens, copy.completion_tokens, copy.usage_source) == (3, 5, "engine")
    assert (primary.completion_tokens, primary.shadow_of) == (3, "")
    assert 0 < copy.dispatched_s <= copy.duration_s
    assert bool(copy.first_token_s) == stream
    seen, copied = one.stats()["requests"][0], two.stats()["requests"][0]
    assert seen["body_sha256"] == copied["body_sha256"]
    assert dict(copied["headers"])["x-request-id"] == "r1-shadow-v2"
    assert "authorization" not in dict(copied["headers"])


LASTING = ("hangs", "is slow", "stalls")
"""Faults that keep a copy for seconds."""
FAULTS = {
    "hangs": ["--first-byte-delay-s", "60"],
    "dies": ["--die-after-events", "2"],
    "is slow": ["--gap-s", "0.4"],
    "answers 500": ["--status", "500"],
    "answers 429": ["--status", "429", "--retry-after-s", "30"],
    "talks garbage": ["--garbage"],
    "cuts": ["--cut-after-events", "2"],
    "stalls": ["--stall-after-events", "2"],
    "fails in band": ["--error-event-after-events", "2"],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_becomes_of_the_copy_the_request_does_not_notice(
    router: RouterProcess, fake_engine: Start, fault: str
) -> None:
    one, two = fake_engine("--events", "6", "--gap-s", "0.01"), fake_engine(*FAULTS[fault])
    publish(router, one.port, two.port, timeouts=Timeouts(between_tokens_s=3.0, first_byte_s=3.0))
    for _ in range(3):
        response = router.chat(stream=True, headers={"x-request-id": "r"})
        assert response.status_code == 200
        assert response.text.count("data: ") == 9, "role, six tokens, the finish, [DONE]"
        assert response.headers["x-modelyard-attempts"] == "1"
    primaries, copies = apart(router.records(6))
    if fault in LASTING:
        assert max(one.duration_s for one in primaries) < min(copy.duration_s for copy in copies)
    assert [one.outcome for one in primaries] == ["completed"] * 3
    assert {one.attempts for one in primaries} == {1}
    assert {one.version for one in primaries} == {"v1"}
    assert [one.attempts for one in copies] == [1] * 3, "it is never tried again"
    assert one.stats()["seen"] == 3
    stats = router.control.stats()
    assert stats.inflight == {}, "nothing is left behind"


def test_a_shadow_that_is_not_there_is_noted_and_costs_nothing(router: RouterProcess, fake_engine: Start) -> None:
    one, two = fake_engine(), fake_engine()
    publish(router, one.port, two.port)
    two.kill()
    for _ in range(5):
        assert router.chat().status_code == 200
    router.records(10)
    versions = [version("v1", [one.port]), version("v2", [])]
    router.publish(model(versions, {"v1": BUCKETS}, shadows=(shadow(),)))
    assert router.chat().status_code == 200
    primaries, copies = apart(router.records(12))
    assert {one.outcome for one in primaries} == {"completed"}
    assert [one.error for one in copies] == ["connect_refused"] * 5 + ["no_ready_engine"]
    assert [one.outcome for one in copies] == ["failed"] * 5 + ["rejected"]


def test_failing_copies_open_no_breaker(router: RouterProcess, fake_engine: Start) -> None:
    """Copies of what v1 answers fail at v2; clients of v2 go there all the same, at their first attempt."""
    one, two = fake_engine(), fake_engine("--status", "500")
    publish(router, one.port, two.port, fallback=("v1",))
    for _ in range(8):
        assert router.chat(model="assistant").status_code == 200
    router.records(16)
    two.behave(status=200)
    response = router.chat(model="assistant@v2")
    assert (response.status_code, response.headers["x-modelyard-attempts"]) == (200, "1")


def test_a_copy_is_no_probe_of_a_replica_that_failed_its_clients(router: RouterProcess, fake_engine: Start) -> None:
    one, two = fake_engine(), fake_engine("--status", "503")
    publish(router, one.port, two.port)
    for _ in range(4):
        router.chat(model="assistant@v2")
    seen = two.stats()["seen"]
    assert router.chat().status_code == 200
    records = router.records(6)
    assert [record.error for record in records if record.shadow_of] == ["no_ready_engine"]
    assert two.stats()["seen"] == seen


def test_only_as_many_copies_as_the_cap_allows_are_in_flight(router: RouterProcess, fake_engine: Start) -> None:
    one, two = fake_engine(), fake_engine("--first-byte-delay-s", "60")
    publish(router, one.port, two.port, shadow(inflight_max=3))
    for _ in range(7):
        assert router.chat().status_code == 200
    until_running(two, 3)
    assert two.stats()["seen"] == 3
    primaries, copies = apart(router.records(7 + 4))
    assert len(primaries) == 7
    assert {(one.outcome, one.error) for one in copies} == {("rejected", "shadow_inflight_max")}
    assert router.control.stats().inflight == {"assistant@v2/0": 3}


def test_a_shadow_that_has_used_its_engine_seconds_up_is_stopped(router: RouterProcess, fake_engine: Start) -> None:
    one, two = fake_engine(), fake_engine("--stall-after-events", "1")
    publish(router, one.port, two.port, shadow(engine_seconds_per_hour=1.0))
    assert router.chat(stream=True).status_code == 200
    assert router.chat(stream=True).status_code == 200
    _, copies = apart(router.records(4))
    assert {(copy.outcome, copy.error) for copy in copies} == {("cancelled", "shadow_budget")}
    used_s = sum(copy.duration_s - copy.dispatched_s for copy in copies)
    assert 1.0 <= used_s < 20, "the sweep that stops them comes ten times a second; else they go on for minutes"
    assert router.chat().status_code == 200
    _, copies = apart(router.records(6))
    assert (copies[-1].outcome, copies[-1].error) == ("rejected", "shadow_budget")
    until_running(two, 0)
    assert two.stats()["cancelled"] == 2


def test_a_sample_is_decided_by_the_requests_id(router: RouterProcess, fake_engine: Start) -> None:
    one, two = fake_engine(), fake_engine()
    publish(router, one.port, two.port, shadow(sample=3000))
    wanted = [f"id-{number}" for number in range(60) if place_of(f"id-{number}", b"5a17") < 3000]
    for number in range(60):
        router.chat(headers={"x-request-id": f"id-{number}"})
    _, copies = apart(router.records(60 + len(wanted)))
    assert 8 < len(wanted) < 30
    assert sorted(copy.shadow_of for copy in copies) == sorted(wanted)


def test_pinned_requests_are_not_copied(router: RouterProcess, fake_engine: Start) -> None:
    one, two = fake_engine(), fake_engine()
    publish(router, one.port, two.port)
    router.chat(model="assistant@v1")
    router.chat()
    assert len(router.records(3)) == 3
    assert two.stats()["seen"] == 1


def test_a_client_that_leaves_cancels_only_its_own(router: RouterProcess, fake_engine: Start) -> None:
    one, two = fake_engine("--gap-s", "0.05", "--events", "100"), fake_engine("--gap-s", "0.05", "--events", "20")
    publish(router, one.port, two.port)
    body = {"model": "assistant", "messages": [], "stream": True}
    with router.client.stream("POST", "/v1/chat/completions", json=body) as response:
        next(response.iter_bytes())
    primaries, copies = apart(router.records(2))
    assert (primaries[0].outcome, copies[0].outcome) == ("cancelled", "completed")
    assert copies[0].completion_tokens == 20


def test_a_request_that_failed_over_is_copied_once(router: RouterProcess, fake_engine: Start) -> None:
    one, two, dead = fake_engine(), fake_engine(), fake_engine()
    dead.kill()
    versions = [version("v1", [dead.port]), version("v2", [two.port]), version("v3", [one.port])]
    weights = {"v1": BUCKETS, "v2": 0, "v3": 0}
    router.publish(model(versions, weights, shadows=(shadow(),), fallback=("v3",)))
    response = router.chat()
    assert response.headers["x-modelyard-version"] == "assistant@v3"
    primaries, copies = apart(router.records(2))
    assert (primaries[0].attempts, len(copies)) == (2, 1)
    assert two.stats()["seen"] == 1


def test_a_drain_waits_for_no_copy(router: RouterProcess, fake_engine: Start) -> None:
    one, two = fake_engine(), fake_engine("--first-byte-delay-s", "60")
    publish(router, one.port, two.port)
    assert router.chat().status_code == 200
    until_running(two, 1)
    started = time.monotonic()
    router.client.close()
    assert router.stop() == 0
    assert time.monotonic() - started < 20, "a drain waits for 30 s"
    _, (copy,) = apart(router.records(2))
    assert (copy.outcome, copy.error) == ("cancelled", "router_stopping")


def test_a_new_table_keeps_what_a_shadow_has_under_way_and_has_used(router: RouterProcess, fake_engine: Start) -> None:
    one, two = fake_engine(), fake_engine("--first-byte-delay-s", "60")
    publish(router, one.port, two.port, shadow(inflight_max=2))
    router.chat()
    until_running(two, 1)
    publish(router, one.port, two.port, shadow(inflight_max=1))
    router.chat()
    _, copies = apart(router.records(3))
    assert [copy.error for copy in copies] == ["shadow_inflight_max"]
    versions = [version("v1", [one.port]), version("v2", [two.port])]
    router.publish(model(versions, {"v1": BUCKETS}))
    assert router.chat().status_code == 200
    assert router.control.stats().inflight == {"assistant@v2/0": 1}, "what is under way ends by itself"
    two.kill(signal.SIGKILL)
    _, copies = apart(router.records(5))
    assert copies[-1].outcome == "failed"


def test_many_at_once_are_all_answered_and_all_joined(router: RouterProcess, fake_engine: Start) -> None:
    one, two = fake_engine("--gap-s", "0.002"), fake_engine("--gap-s", "0.004")
    publish(router, one.port, two.port, shadow(inflight_max=8))
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: router.chat(stream=bool(number % 2)), range(120)))
    assert {answer.status_code for answer in answers} == {200}
    primaries, copies = apart(router.records(240))
    assert {copy.shadow_of for copy in copies} == {one.request_id for one in primaries}
    assert {copy.outcome for copy in copies} <= {"completed", "rejected"}
    assert two.stats()["seen"] == sum(copy.outcome == "completed" for copy in copies)


@given(st.lists(st.tuples(st.floats(0, 900), st.floats(0, 50)), max_size=60))
def test_what_was_spent_is_what_was_added_within_the_hour(steps: list[tuple[float, float]]) -> None:
    spending, now, added = Spending(), 1000.0, []
    for wait, seconds in steps:
        now += wait
        spending.add(now, seconds)
        added.append((now, seconds))
        hour = sum(one for at, one in added if now - at <= 3600)
        rather = sum(one for at, one in added if now - at <= 3600 + SLOT_S)
        assert hour - 1e-6 <= spending.spent(now) <= rather + 1e-6
        assert len(spending._slots) <= SLOTS + 1
    assert spending.spent(now + 3700) == 0


@given(st.floats(0.1, 100), st.floats(0, 200))
def test_a_budget_refuses_once_it_is_spent(budget: float, spent: float) -> None:
    lane = Lane(shadow(engine_seconds_per_hour=budget))
    lane.spending.add(10.0, spent)
    assert lane.refusal(10.0) == ("shadow_budget" if spent >= budget else "")
    assert Lane(shadow()).refusal(10.0) == ""


@given(st.binary(max_size=16), st.integers(0, BUCKETS))
def test_samples_are_nested_and_near_their_share(salt: bytes, sample: int) -> None:
    places = [place_of(f"req-{number}", salt) for number in range(400)]
    taken = sum(place < sample for place in places)
    assert abs(taken / 400 - sample / BUCKETS) < 0.16


def test_a_copy_begins_only_where_a_client_could_and_takes_no_place(router: RouterProcess, fake_engine: Start) -> None:
    one, two = fake_engine(), fake_engine("--first-byte-delay-s", "600")
    admission = Admission(inflight_max=2, queue_max=10)
    publish(router, one.port, two.port, admission=admission)
    with ThreadPoolExecutor(6) as pool:
        with standstill(one):
            futures = [pool.submit(router.chat) for _ in range(6)]
            until(lambda: router.control.stats().waiting == {"assistant": (4, 0, 0)})
        answers = [future.result() for future in futures]
    assert {answer.status_code for answer in answers} == {200}, "no place is held by a copy that hangs"
    assert two.stats()["seen"] <= 3
    _, copies = apart(router.records(6 + 3))
    assert {copy.error for copy in copies} == {"shadow_no_room"}
