"""The circuit breaker: alone, over any history; and in the router, where it leaves no request without a replica."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from engines.fixtures import FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from router_harness import RouterProcess, model, until, version

from serving.router.breaker import (
    FAILURES_TO_OPEN,
    JITTER,
    OPEN_FIRST_S,
    OPEN_MAX_S,
    OVERLOADS_TO_REST,
    REST_MAX_S,
    WINDOW,
    Breaker,
)
from serving.router.table import Retry, Timeouts

Start = Callable[..., FakeEngine]


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN):
        assert breaker.allows(now)
        breaker.begin()
        breaker.failed(now, 0.0)
    return breaker


def test_it_opens_after_failures_in_a_row_and_probes_once() -> None:
    breaker = opened()
    assert not breaker.allows(OPEN_FIRST_S * 0.99)
    assert breaker.allows(OPEN_FIRST_S)
    breaker.begin()
    assert not breaker.allows(OPEN_FIRST_S)  # one probe at a time
    breaker.succeeded()
    assert breaker.allows(OPEN_FIRST_S)
    assert not breaker.is_open


def test_one_failure_in_three_keeps_it_closed() -> None:
    breaker = Breaker()
    for _ in range(10 * FAILURES_TO_OPEN):
        breaker.begin()
        breaker.failed(0.0, 0.0)
        for _ in range(2):
            breaker.begin()
            breaker.succeeded()
    assert breaker.allows(0.0)


def test_one_that_fails_every_other_time_opens_although_it_never_fails_thrice_in_a_row() -> None:
    breaker = Breaker()
    for _ in range(WINDOW):
        breaker.begin()
        breaker.failed(0.0, 0.0)
        if breaker.is_open:
            return
        breaker.begin()
        breaker.succeeded()
    pytest.fail("it flaps on")


def test_what_a_replica_asks_for_is_given_and_no_more_than_a_minute() -> None:
    breaker = Breaker()
    breaker.overloaded(10.0, 2.0)
    assert not breaker.allows(11.9)
    assert breaker.allows(12.0)
    assert not breaker.is_open
    breaker.overloaded(20.0, 1e6)
    assert breaker.rests_s(20.0) == REST_MAX_S


def test_overload_without_a_word_is_believed_the_third_time() -> None:
    breaker = Breaker()
    for _ in range(OVERLOADS_TO_REST - 1):
        breaker.overloaded(0.0, None)
        assert breaker.allows(0.0)
    breaker.overloaded(0.0, None)
    assert not breaker.allows(0.0)


def test_every_failed_probe_doubles_the_wait_up_to_a_bound() -> None:
    breaker, now, waits = opened(), 0.0, []
    for _ in range(8):
        began = now
        while not breaker.allows(now):
            now += 0.01
        waits.append(now - began)
        breaker.begin()
        breaker.failed(now, 0.5)
    assert all(after > before - 0.05 for before, after in itertools.pairwise(waits))
    assert waits[1] > 1.9 * waits[0]
    assert OPEN_MAX_S <= waits[-1] <= OPEN_MAX_S * (1 + JITTER) + 0.02


def test_a_probe_whose_client_leaves_is_tried_again() -> None:
    breaker = opened()
    breaker.begin()
    breaker.abandoned()
    assert breaker.allows(OPEN_FIRST_S)


@given(st.lists(st.tuples(st.sampled_from("bsfa"), st.floats(0, 3), st.floats(0, 0.99)), max_size=60))
def test_whatever_happened_it_lets_a_probe_through_in_time(history: list[tuple[str, float, float]]) -> None:
    breaker, now = Breaker(), 0.0
    for event, later_s, jitter in history:
        now += later_s
        if event == "b":
            breaker.begin()
        elif event == "s":
            breaker.succeeded()
            assert breaker.allows(now)
        elif event == "f":
            breaker.failed(now, jitter)
        else:
            breaker.abandoned()
    breaker.abandoned()
    assert breaker.allows(now + OPEN_MAX_S * (1 + JITTER))


def test_a_silent_replica_is_asked_no_more_until_it_is_back(router: RouterProcess, fake_engine: Start) -> None:
    silent, good = fake_engine("--first-byte-delay-s", "30"), fake_engine()
    versions = [version("v1", [silent.port]), version("v2", [good.port])]
    router.publish(model(versions, {"v1": 10_000, "v2": 0}, fallback=("v2",), timeouts=Timeouts(first_byte_s=1.0)))
    for _ in range(FAILURES_TO_OPEN):
        assert router.chat().headers["x-modelyard-attempts"] == "2"
    quick = until(lambda: (answer := router.chat()).headers["x-modelyard-attempts"] == "1" and answer)  # or a probe
    assert quick.headers["x-modelyard-version"] == "assistant@v2"
    silent.behave(first_byte_delay_s=0.0)
    until(lambda: router.chat().headers["x-modelyard-version"] == "assistant@v1")


def test_the_last_replica_is_never_left_out(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--status", "500", "--status-times", "5")
    router.publish(model([version("v1", [engine.port])], {"v1": 10_000}, retry=Retry(attempts_max=1)))
    assert [router.chat().status_code for _ in range(7)] == [500] * 5 + [200] * 2


@pytest.mark.parametrize("status", [400, 501])
def test_a_clients_own_mistakes_open_nothing(router: RouterProcess, fake_engine: Start, status: int) -> None:
    wrong, other = fake_engine("--status", str(status)), fake_engine()
    versions = [version("v1", [wrong.port]), version("v2", [other.port])]
    router.publish(model(versions, {"v1": 10_000, "v2": 0}, fallback=("v2",)))
    assert {router.chat().status_code for _ in range(3 * FAILURES_TO_OPEN)} == {status}
    assert other.stats()["seen"] == 0
    assert {record.outcome for record in router.records(3 * FAILURES_TO_OPEN)} == {"completed"}
