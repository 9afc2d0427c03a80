"""SM seconds from samples: what they sum to does not depend on when, or how often, somebody looks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.gpu_processes import Sample, SmMeter

START_US = 1_700_000_000_000_000
ALWAYS, SOMETIMES = 7, 8
shares = st.lists(st.integers(0, 100), min_size=12, max_size=60)
periods_us = st.integers(150_000, 1_000_000)


def ticks(period_us: int, shares: Sequence[int]) -> list[Sample]:
    """A driver's own samples of two processes: one runs always, the other where its share is not 0."""
    times = [START_US + period_us * (number + 1) for number in range(len(shares))]
    always = [Sample(ALWAYS, time_us, 50) for time_us in times]
    return always + [Sample(SOMETIMES, time_us, sm) for time_us, sm in zip(times, shares, strict=True) if sm]


def summed(meter: SmMeter, looks: Sequence[tuple[int, list[Sample]]]) -> dict[int, float]:
    total = {ALWAYS: 0.0, SOMETIMES: 0.0}
    for now_us, samples in looks:
        for pid, use in meter.take(samples, now_us / 1e6).items():
            total[pid] += use.sm_s or 0.0
    return total


def expected(period_us: int, shares: Sequence[int], from_tick: int) -> dict[int, float]:
    after = shares[from_tick:]
    return {ALWAYS: len(after) * 0.5 * period_us / 1e6, SOMETIMES: sum(after) / 100 * period_us / 1e6}


def look_after(numbers: Sequence[int], period_us: int) -> list[int]:
    return [START_US + number * period_us + period_us // 2 for number in numbers]


@given(periods_us, shares, st.integers(2, 6))
def test_a_driver_that_gives_each_of_its_periods(period_us: int, shares: list[int], every: int) -> None:
    meter, looks = SmMeter(), []
    numbers = [*range(2, len(shares), every), len(shares)]
    known = ticks(period_us, shares)
    for now_us in look_after(numbers, period_us):
        after_us = meter.ask_after()
        looks.append((now_us, [one for one in known if after_us < one.time_us <= now_us]))
        meter.take(looks[-1][1], now_us / 1e6)
    assert summed(SmMeter(), looks) == pytest.approx(expected(period_us, shares, 2), abs=1e-6)


@given(periods_us, shares, st.data())
def test_a_driver_that_gives_the_mean_since_it_was_asked(
    period_us: int, shares: list[int], data: st.DataObject
) -> None:
    chosen = data.draw(st.sets(st.integers(2, len(shares) - 1), min_size=2))
    meter, looks = SmMeter(), []
    numbers = [*sorted(chosen), len(shares)]
    known = ticks(period_us, shares)
    for now_us in look_after(numbers, period_us):
        after_us = meter.ask_after()
        new = [one for one in known if after_us < one.time_us <= now_us]
        count = len({one.time_us for one in new})
        last_us = max(one.time_us for one in new)
        means = {pid: sum(one.sm for one in new if one.pid == pid) / count for pid in (ALWAYS, SOMETIMES)}
        looks.append((now_us, [Sample(pid, last_us, mean) for pid, mean in means.items() if mean]))
        meter.take(looks[-1][1], now_us / 1e6)
    assert summed(SmMeter(), looks) == pytest.approx(expected(period_us, shares, numbers[0]), abs=1e-6)


def test_a_sample_that_was_seen_counts_once() -> None:
    meter = SmMeter()
    first = Sample(1, START_US, 50)
    meter.take([first], START_US / 1e6)
    second = Sample(1, START_US + 500_000, 50)
    assert meter.take([first, second], START_US / 1e6 + 0.5)[1].sm_s == pytest.approx(0.25)
    assert meter.take([first, second], START_US / 1e6 + 0.6, [1])[1].sm_s == 0.0
