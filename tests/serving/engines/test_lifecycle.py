"""The life of a replica, its backoff schedule and its share of the machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engines import lifecycle
from serving.engines.lifecycle import CONFIGURATION_EXIT, Life, Policy, backoff_s, threads_per_engine

policies = st.builds(
    Policy,
    first_s=st.floats(0.01, 5),
    max_s=st.floats(5, 600),
    jitter=st.floats(0, 0.9),
    early_deaths_max=st.integers(1, 6),
    misses_max=st.integers(1, 6),
)
chances = st.floats(0, 1, exclude_max=True)
EVENTS = ("launched", "answered", "missed", "died", "configuration", "draining", "stopped")


@given(policies, st.integers(0, 5000), chances)
def test_a_wait_stays_within_its_bounds(policy: Policy, failures: int, chance: float) -> None:
    wait_s = backoff_s(policy, failures, chance)
    assert 0 <= wait_s <= policy.max_s
    if failures:
        assert wait_s >= policy.first_s * (1 - policy.jitter) * 0.999


@given(policies, st.integers(0, 60))
def test_waits_grow_with_failures(policy: Policy, failures: int) -> None:
    assert backoff_s(policy, failures, 0.0) <= backoff_s(policy, failures + 1, 0.0)


def apply(life: Life, policy: Policy, event: str, now: float, chance: float) -> Life:
    happen = {
        "launched": lambda: lifecycle.launched(life, now),
        "answered": lambda: lifecycle.answered(life, policy, now),
        "missed": lambda: lifecycle.missed(life, policy, now, "no answer"),
        "died": lambda: lifecycle.died(life, policy, now, "it died", chance=chance),
        "configuration": lambda: lifecycle.died(
            life, policy, now, "bad flag", chance=chance, status=CONFIGURATION_EXIT
        ),
        "draining": lambda: lifecycle.draining(life, now),
        "stopped": lambda: lifecycle.stopped(life, now),
    }
    return happen[event]()


@given(policies, st.lists(st.tuples(st.sampled_from(EVENTS), chances), max_size=40))
def test_no_event_breaks_a_life(policy: Policy, events: list[tuple[str, float]]) -> None:
    life, now = Life(), 100.0
    for event, chance in events:
        now += 1.0
        before, life = life, apply(life, policy, event, now, chance)
        assert life.since <= now
        assert life.restarts >= before.restarts
        if before.state == "failed":
            assert life.state == "failed" or event in ("launched", "draining", "stopped")
        if life.state == "ready":
            assert life.misses < policy.misses_max
            assert life.was_ready
        if event in ("answered", "missed", "died", "configuration") and before.state in ("draining", "stopped"):
            assert life.state == before.state
        if event == "died" and before.state not in ("draining", "stopped", "failed"):
            assert life.state in ("backoff", "failed")
            assert now <= life.retry_at <= now + policy.max_s


@given(st.integers(-1, 512), st.integers(-1, 64))
def test_threads_are_shared_evenly(cores: int, engines: int) -> None:
    threads = threads_per_engine(cores, engines)
    assert threads >= 1
    if cores > engines >= 1:
        assert threads * engines < cores <= (threads + 1) * engines


def test_it_fails_for_good_after_three_deaths_before_it_was_ready() -> None:
    policy = Policy()
    life = Life()
    for attempt in range(3):
        life = lifecycle.launched(life, 10.0 + attempt)
        life = lifecycle.died(life, policy, 10.5 + attempt, "no model", chance=0.0)
        assert life.state == ("failed" if attempt == 2 else "backoff")
    assert (life.last_error, life.restarts) == ("no model", 2)


def test_wrong_arguments_are_not_tried_again() -> None:
    life = lifecycle.died(lifecycle.launched(Life(), 1.0), Policy(), 1.1, "unknown", chance=0.0, status=2)
    assert life.state == "failed"


def test_a_ready_engine_that_dies_is_always_started_again() -> None:
    policy = Policy()
    life = Life()
    for attempt in range(50):
        life = lifecycle.answered(lifecycle.launched(life, attempt * 10.0 + 1), policy, attempt * 10.0 + 2)
        life = lifecycle.died(life, policy, attempt * 10.0 + 3, "killed", chance=0.0)
        assert life.state == "backoff"
    assert life.retry_at == pytest.approx(493.0 + policy.max_s)


def test_a_stable_time_forgives_failures() -> None:
    policy = Policy()
    life = replace(lifecycle.answered(lifecycle.launched(Life(), 1.0), policy, 2.0), failures=7)
    assert lifecycle.answered(life, policy, 2.0 + policy.stable_s - 1).failures == 7
    life = lifecycle.answered(life, policy, 2.0 + policy.stable_s)
    assert lifecycle.died(life, policy, 100.0, "killed", chance=0.0).retry_at == pytest.approx(100.0 + policy.first_s)


def test_silence_takes_it_out_and_an_answer_brings_it_back() -> None:
    policy = Policy(misses_max=3)
    life = lifecycle.answered(lifecycle.launched(Life(), 1.0), policy, 2.0)
    for _ in range(2):
        life = lifecycle.missed(life, policy, 3.0, "timeout")
        assert life.state == "ready"
    life = lifecycle.missed(life, policy, 4.0, "timeout")
    assert (life.state, life.last_error) == ("backoff", "timeout")
    assert not lifecycle.hung(life, policy, 2.0 + policy.hung_s - 0.1)
    assert lifecycle.hung(life, policy, 2.0 + policy.hung_s)
    life = lifecycle.answered(life, policy, 5.0)
    assert (life.state, life.last_error) == ("ready", "")


def test_a_slow_start_is_allowed_and_an_endless_one_is_not() -> None:
    policy = Policy(start_timeout_s=300, hung_s=10)
    life = lifecycle.launched(Life(), 1.0)
    for second in range(2, 290):
        life = lifecycle.missed(life, policy, float(second), "loading")
    assert life.state == "starting"
    assert not lifecycle.hung(life, policy, 290.0)
    assert lifecycle.hung(life, policy, 301.0)
