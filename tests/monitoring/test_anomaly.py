"""Anomalies of cost: factors sum to the change, causes are named right, and false alarms are as rare as stated."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.anomaly import ALPHA, BEGINNINGS, CAUSES, DAY_S, HOUR_S, QUANTILES, Use, cause_of, factors, look

NOW = 1_794_000_000 // DAY_S * DAY_S + 15 * HOUR_S
amounts = st.floats(0.01, 1e5)


@st.composite
def uses(draw: st.DrawFn) -> Use:
    busy, successes = draw(amounts), draw(amounts)
    return Use(
        cost=draw(amounts),
        busy_s=busy,
        idle_s=draw(st.just(0.0) | amounts),
        inflight_s=draw(st.just(0.0) | st.floats(1, 64)) * busy,
        requests=successes * draw(st.floats(1, 10)),
        successes=successes,
        prompt_tokens=draw(st.just(0.0) | amounts),
        output_tokens=draw(st.just(0.0) | amounts),
    )


@given(uses(), uses())
def test_factors_sum_to_the_change(before: Use, after: Use) -> None:
    found = factors(before, after, (1.0, 4.0))
    assert sum(one.log_change for one in found) == pytest.approx(math.log(after.per_1k / before.per_1k), abs=1e-6)
    assert {one.cause for one in found} <= set(CAUSES)
    assert [one.log_change for one in found] == sorted((one.log_change for one in found), reverse=True)


def hour(
    requests: float, *, output: float = 100.0, occupancy: float = 4.0, price: float = 3.6, failed: float = 0.0
) -> Use:
    """An hour of a device at `price` an hour: 0.01 s of it per output token in a batch of one, less in larger ones."""
    inflight = requests * (1 + failed) * output * 0.01 * (0.5 + 0.125 * occupancy)
    busy = inflight / occupancy
    assert busy <= HOUR_S
    return Use(
        cost=price,
        busy_s=busy,
        idle_s=HOUR_S - busy,
        inflight_s=inflight,
        requests=requests * (1 + failed),
        successes=requests,
        prompt_tokens=requests * 50.0,
        output_tokens=requests * output,
    )


def books(days: int, usual: Callable[[int], Use], recent: Callable[[], Use], *, recent_h: int = 6) -> dict[int, Use]:
    """Hours up to NOW: `usual(hour of day)`, the last ones `recent()`."""
    hours = range(NOW - days * DAY_S, NOW, HOUR_S)
    return {at: recent() if at >= NOW - recent_h * HOUR_S else usual(at // HOUR_S % 24) for at in hours}


def noisy(rng: random.Random) -> Callable[[int], Use]:
    """Nights are quiet, days differ by some percent."""
    return lambda at: hour(round((600 if 8 <= at < 22 else 60) * rng.lognormvariate(0, 0.05)))


@pytest.mark.parametrize(
    ("recent", "cause"),
    [
        (lambda: hour(250), "more_idle"),
        (lambda: hour(600, price=7.2), "price_change"),
    ],
)
def test_a_rise_is_found_and_its_cause_named(recent: Callable[[], Use], cause: str) -> None:
    found = look("assistant@v1", books(15, noisy(random.Random(3)), recent), NOW + 60)
    assert found.verdict == "anomaly"
    assert found.ratio > found.ratio_alarm > 1
    assert 14 >= found.days >= 11
    assert (found.start, found.stop) == (NOW - 6 * HOUR_S, NOW)
    assert sum(one.log_change for one in found.factors) == pytest.approx(math.log(found.ratio), abs=0.05)
    assert found.cause == cause


def test_causes_are_told_apart() -> None:
    """One thing changes at a time, on a device that is always busy."""
    base = Use(10.0, 3600.0, 0.0, 4 * 3600.0, 1000, 1000, 50_000, 100_000)
    changed = {
        "larger_outputs": replace(base, cost=20, busy_s=7200, inflight_s=8 * 3600, output_tokens=220_000),
        "larger_prompts": replace(base, cost=20, busy_s=7200, inflight_s=8 * 3600, prompt_tokens=500_000),
        "lower_occupancy": replace(base, cost=20, busy_s=7200, inflight_s=4 * 3600),
        "slower_engine": replace(base, cost=20, busy_s=7200, inflight_s=8 * 3600),
        "more_idle": replace(base, cost=20, idle_s=3600),
        "price_change": replace(base, cost=20),
        "more_failures": replace(
            base, cost=20, busy_s=7200, inflight_s=8 * 3600, requests=2000, prompt_tokens=100_000, output_tokens=200_000
        ),
    }
    assert {cause: cause_of(factors(base, use)) for cause, use in changed.items()} == {
        cause: cause for cause in changed
    }
    assert cause_of(factors(base, base)) == "unknown"
    assert cause_of(factors(base, replace(base, cost=5))) == "unknown"


def test_too_little_is_said_with_what_is_needed() -> None:
    quiet = look("a@v1", books(15, lambda _: hour(2), lambda: hour(2)), NOW)
    assert (quiet.verdict, quiet.reason) == ("too_little", "48 successful requests in 24 h, 50 are needed")
    young = look("a@v1", books(4, lambda _: hour(100), lambda: hour(100)), NOW)
    assert (young.verdict, young.reason) == (
        "too_little",
        "3 earlier days have 20 requests at these hours, 5 are needed",
    )
    assert look("a@v1", {}, NOW).verdict == "too_little"


def test_a_rise_stays_an_anomaly_for_days_and_then_becomes_usual() -> None:
    rng = random.Random(5)
    verdicts = {
        days: look(
            "a@v1",
            books(25, noisy(rng), lambda: hour(round(200 * rng.lognormvariate(0, 0.05))), recent_h=24 * days),
            NOW,
        ).verdict
        for days in (1, 3, 4, 7, 12)
    }
    assert (verdicts[1], verdicts[3], verdicts[4], verdicts[12]) == ("anomaly", "anomaly", "anomaly", "usual")


def test_a_small_rise_is_none_however_sure() -> None:
    found = look("a@v1", books(15, lambda _: hour(600), lambda: hour(510)), NOW)
    assert found.verdict == "usual"
    assert found.ratio_alarm == pytest.approx(1.2)


@pytest.mark.parametrize("days", [6, 15])
def test_false_alarms_are_as_rare_as_stated(days: int) -> None:
    """Days that differ by 30%, so that a rise of a fifth is usual: the rate is held by the test, not by RATIO_MIN."""
    rng = random.Random(11)
    rounds = 3000
    base = {at: hour(100) for at in range(6)}
    alarms = 0
    for _ in range(rounds):
        by_hour: dict[int, Use] = {}
        for day in range(days):
            factor = rng.lognormvariate(0, 0.3)
            for back in range(1, 7):
                by_hour[NOW - day * DAY_S - back * HOUR_S] = replace(base[back - 1], cost=3.6 * factor)
        alarms += look("a@v1", by_hour, NOW).verdict == "anomaly"
    assert alarms / rounds <= ALPHA + 3 * math.sqrt(ALPHA / rounds)


def test_quantiles_are_students() -> None:
    from scipy.stats import t

    assert pytest.approx([t.ppf(1 - ALPHA / BEGINNINGS, freedom) for freedom in range(1, 28)], rel=1e-3) == list(
        QUANTILES
    )
