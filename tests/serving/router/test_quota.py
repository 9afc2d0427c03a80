"""A key's limits: exact against one plain bucket whatever the workers do, never more than agreed over any time."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shared_counters import shared

from serving.errors import ApiError
from serving.router.counters import Counters
from serving.router.quota import (
    INFLIGHT,
    REQUESTS_USED,
    TOKENS_USED,
    Charge,
    KeyLimits,
    estimate_tokens,
    has_limits,
    period_of,
)
from serving.router.table import Key

DAY_S = 86_400.0
START = 1000.0


def key(**limits: Any) -> Key:
    return Key(id="key_1", digest=b"", slot=3, **limits)


def limits_of(terms: Key, counters: Counters | None = None, now: float = START) -> KeyLimits:
    counters = counters or Counters.private()
    return KeyLimits(terms, counters.key(terms.id, terms.slot), now)


def entered(answer: Charge | ApiError) -> Charge:
    assert isinstance(answer, Charge), answer
    return answer


def refused(answer: Charge | ApiError) -> ApiError:
    assert isinstance(answer, ApiError)
    return answer


class PlainBucket:
    """What is meant, said as plainly as possible: one bucket that everybody asks."""

    def __init__(self, limit: int) -> None:
        self.limit, self.level, self.at = limit, float(limit), START

    def advance(self, now: float) -> None:
        self.level = min(self.limit, self.level + (now - self.at) * self.limit / 60)
        self.at = now


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),  # which worker
        st.floats(0, 40).filter(lambda value: value == 0 or value > 1e-3),
        st.booleans(),  # a new request, or the end of one
        st.integers(0, 300),  # tokens
    ),
    max_size=80,
)


@settings(max_examples=300)
@given(STEPS, st.integers(1, 3), st.sampled_from([1, 7, 60, 1000]))
@example([(0, 0.0, True, 7), (1, 30.0, False, 300), (1, 0.0, True, 1)], 2, 7)
def test_workers_together_are_one_bucket(steps: list[tuple[int, float, bool, int]], workers: int, limit: int) -> None:
    terms = key(tokens_per_minute=limit)
    each = [limits_of(terms, counters) for counters in shared(workers)]
    plain, now = PlainBucket(limit), START
    running: list[tuple[Charge, int]] = []
    for worker, later_s, begins, tokens in steps:
        now += later_s
        plain.advance(now)
        limits = each[worker % workers]
        if begins:
            needed = min(tokens, limit)
            if abs(plain.level - needed) < 1e-3:
                continue  # which side of the edge it is on is a matter of rounding
            answer = limits.enter(now, 0.0, tokens)
            assert isinstance(answer, Charge) == (plain.level >= needed)
            if isinstance(answer, Charge):
                plain.level -= tokens
                running.append((answer, tokens))
            else:
                assert answer.retry_after_s == max(1, math.ceil((needed - plain.level) / (limit / 60) - 1e-3))
        elif running:
            charge, charged = running.pop(0)
            limits.settle(charge, now, 0.0, tokens=tokens, engine_s=0.0, served=True)
            plain.level = min(limit, plain.level + charged - tokens)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 5)), max_size=200), st.integers(1, 4))
def test_no_time_lets_more_through_than_the_limit_and_what_it_fills_by(
    arrivals: list[tuple[int, float]], workers: int
) -> None:
    limit = 30
    each = [limits_of(key(requests_per_minute=limit), counters) for counters in shared(workers)]
    now, admitted = START, []
    for worker, later_s in arrivals:
        now += later_s
        if isinstance(each[worker % workers].enter(now, 0.0, 0), Charge):
            admitted.append(now)
    for first, since in enumerate(admitted):
        for last in range(first, len(admitted)):
            assert last - first + 1 <= limit + limit / 60 * (admitted[last] - since) + 1e-3


@given(st.lists(st.tuples(st.integers(0, 1), st.booleans(), st.integers(0, 500), st.integers(0, 500)), max_size=60))
def test_what_no_engine_saw_costs_nothing_and_the_rest_what_it_used(
    ends: list[tuple[int, bool, int, int]],
) -> None:
    counters = shared(2)
    terms = key(requests_per_minute=10**6, tokens_per_minute=10**6, budget_tokens=10**6, concurrency_max=1000)
    each = [limits_of(terms, one) for one in counters]
    served = tokens_used = 0
    for worker, was_served, estimate, reported in ends:
        charge = entered(each[worker].enter(START, 0.0, estimate))
        tokens = reported if was_served else 0
        each[worker].settle(charge, START, 0.0, tokens=tokens, engine_s=0.0, served=was_served)
        served += was_served
        tokens_used += tokens
    row = counters[0].key(terms.id, terms.slot)
    assert row.running(INFLIGHT) == 0
    assert (row.total(REQUESTS_USED), row.total(TOKENS_USED)) == (served, tokens_used)


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=80), st.integers(1, 4))
def test_never_more_at_a_time_than_may_be(steps: list[tuple[int, bool]], bound: int) -> None:
    each = [limits_of(key(concurrency_max=bound), counters) for counters in shared(3)]
    running: list[tuple[KeyLimits, Charge]] = []
    for worker, begins in steps:
        if begins:
            answer = each[worker].enter(START, 0.0, 0)
            assert isinstance(answer, Charge) == (len(running) < bound)
            if isinstance(answer, Charge):
                running.append((each[worker], answer))
            else:
                assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
        elif running:
            limits, charge = running.pop()
            limits.settle(charge, START, 0.0, tokens=0, engine_s=0.0, served=True)


def test_an_idle_worker_does_not_take_a_minute_that_another_one_has_used() -> None:
    busy, idle = [limits_of(key(requests_per_minute=60), counters) for counters in shared(2)]
    idle.enter(START, 0.0, 0)
    now = START + 3600
    for _ in range(60):
        entered(busy.enter(now, 0.0, 0))
    assert refused(idle.enter(now, 0.0, 0)).retry_after_s == 1
    entered(idle.enter(now + 1.0, 0.0, 0))
    refused(busy.enter(now + 1.0, 0.0, 0))


def test_headers_say_what_is_left() -> None:
    limits = limits_of(key(requests_per_minute=60, tokens_per_minute=6000))
    charge = entered(limits.enter(START, 0.0, 1500))
    lines = dict(line.split(": ") for line in charge.headers.decode().split("\r\n") if line)
    assert lines == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1.000s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "4500",
        "x-ratelimit-reset-tokens": "15.000s",
    }
    limits.settle(charge, START, 0.0, tokens=500, engine_s=0.0, served=True)
    assert b"x-ratelimit-remaining-tokens: 5500\r\n" in limits.headers(START)
    assert limits_of(key(concurrency_max=3)).headers(START) == b""


def test_an_estimate_above_the_limit_waits_for_a_full_bucket_and_is_paid_off() -> None:
    limits = limits_of(key(tokens_per_minute=100))
    charge = entered(limits.enter(START, 0.0, 1000))
    limits.settle(charge, START, 0.0, tokens=150, engine_s=0.0, served=True)
    assert refused(limits.enter(START, 0.0, 0)).retry_after_s == 30  # 50 too many at 100 a minute
    assert refused(limits.enter(START, 0.0, 5000)).retry_after_s == 90  # and then 100 to be full
    entered(limits.enter(START + 90, 0.0, 5000))


@pytest.mark.parametrize(("before", "after", "passes"), [(10, 20, 6), (20, 10, 10), (10, 10, 6)])
def test_a_changed_limit_goes_on_from_what_was_left(before: int, after: int, passes: int) -> None:
    counters = shared(2)
    olds = [limits_of(key(requests_per_minute=before), one) for one in counters]
    for limits in (olds[0], olds[1], olds[0], olds[1]):
        entered(limits.enter(START, 0.0, 0))
    news = [limits_of(key(requests_per_minute=after), one) for one in counters]
    got = [isinstance(news[n % 2].enter(START, 0.0, 0), Charge) for n in range(30)]
    assert sum(got) == passes


@pytest.mark.parametrize(
    ("kind", "end"), [("day", "2026-03-01T00:00:00+00:00"), ("month", "2026-03-01T00:00:00+00:00"), ("total", "")]
)
def test_budgets_begin_anew_with_their_period(kind: Any, end: str) -> None:
    import datetime

    wall = datetime.datetime(2026, 2, 28, 12, tzinfo=datetime.UTC).timestamp()
    ends_at = datetime.datetime.fromisoformat(end).timestamp() if end else math.inf
    assert period_of(kind, wall)[1] == ends_at
    terms = key(budget_tokens=100, budget_period=kind)
    one, other = [limits_of(terms, counters) for counters in shared(2)]
    charge = entered(one.enter(START, wall, 60))
    error = refused(other.enter(START, wall, 60))
    assert (error.status, error.code) == (429, "insufficient_quota")
    assert error.retry_after_s == (ends_at - wall if end else 0)
    one.settle(charge, START, wall, tokens=40, engine_s=0.0, served=True)
    entered(other.enter(START, wall, 60))
    refused(one.enter(START, wall, 0))
    if end:
        entered(one.enter(START, ends_at, 100))
        refused(other.enter(START, ends_at, 1))
        refused(other.enter(START, wall, 1))  # the clock was set back: nothing is given twice
    restarted = limits_of(terms, None)
    entered(restarted.enter(START, wall, 100))  # private counters know nothing of the others


def test_engine_seconds_are_a_budget() -> None:
    limits = limits_of(key(budget_engine_s=10.0, budget_period="day"))
    for _ in range(2):
        charge = entered(limits.enter(START, 0.0, 0))
        limits.settle(charge, START, 0.0, tokens=0, engine_s=5.0, served=True)
    assert refused(limits.enter(START, 0.0, 0)).code == "insufficient_quota"
    entered(limits.enter(START, DAY_S, 0))


def test_a_request_that_spans_two_periods_counts_where_it_ends() -> None:
    limits = limits_of(key(budget_tokens=100, budget_period="day"))
    charge = entered(limits.enter(START, DAY_S - 1, 10))
    limits.settle(charge, START, DAY_S + 1, tokens=100, engine_s=0.0, served=True)
    refused(limits.enter(START, DAY_S + 2, 0))


def test_months_end_where_they_should() -> None:
    import datetime

    for month in range(1, 13):
        wall = datetime.datetime(2027, month, 15, tzinfo=datetime.UTC).timestamp()
        number, end = period_of("month", wall)
        assert period_of("month", end - 0.001)[0] == number
        assert period_of("month", end)[0] > number


def test_a_key_that_took_anothers_place_begins_with_nothing_used() -> None:
    counters = shared(2)
    old = limits_of(key(concurrency_max=1, budget_tokens=10), counters[0])
    charge = entered(old.enter(START, 0.0, 10))
    new_terms = Key(id="key_2", digest=b"", slot=3, concurrency_max=1, budget_tokens=10)
    news = [limits_of(new_terms, one) for one in counters]
    new_charge = entered(news[0].enter(START, 0.0, 10))
    old.settle(charge, START, 0.0, tokens=10, engine_s=1.0, served=True)  # the old key's last request
    refused(news[1].enter(START, 0.0, 0))
    news[0].settle(new_charge, START, 0.0, tokens=0, engine_s=0.0, served=False)
    entered(news[1].enter(START, 0.0, 10))


def test_what_costs_nothing_is_not_looked_at() -> None:
    assert not has_limits(key())
    assert has_limits(key(budget_engine_s=1.0))


@pytest.mark.parametrize(
    ("body_bytes", "max_tokens", "context_tokens", "estimate"),
    [
        (401, 20, 0, 120),
        (401, None, 0, 100),
        (4_000_000, 20, 8192, 8212),
        (400, "20", 8192, 100),
        (400, 20.0, 0, 120),
        (400, -1, 0, 100),
        (400, 1e300, 0, 100),
    ],
)
def test_estimates(body_bytes: int, max_tokens: object, context_tokens: int, estimate: int) -> None:
    assert estimate_tokens(body_bytes, max_tokens, context_tokens) == estimate
