"""The sweep line: shares sum to busy time, whatever the order and however it is cut into steps."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.attribution import NS, Key, Shares, advance, apportion, cost_rows, sweep
from registry.entries import HOUR_S, Interval

# Quarter seconds around an hour's end, so that edges coincide and cross hours.
BASE = 1_700_000_000 // HOUR_S * HOUR_S + HOUR_S - 30
times = st.integers(0, 240).map(lambda quarter: BASE + quarter / 4)


@st.composite
def interval(draw: st.DrawFn, devices: tuple[str, ...] = ("cpu",)) -> Interval:
    start, stop = sorted((draw(times), draw(times)))
    version = draw(st.sampled_from(["assistant@v1", "assistant@v2", "other@v1"]))
    return Interval(
        draw(st.sampled_from(devices)), version, draw(st.sampled_from(["completed", "failed"])), start, stop
    )


intervals = st.lists(interval(), max_size=25)
on_two_devices = st.lists(interval(("gpu-a", "gpu-b")), max_size=25)


def total(parts: list[Shares]) -> Shares:
    whole = Shares()
    for part in parts:
        whole += part
    return whole


def plain(shares: Shares) -> tuple[int, dict, dict]:
    return shares.busy_ns, {k: v for k, v in shares.share_ns.items() if v}, dict(shares.inflight_ns)


def test_two_overlapping_requests_share_their_overlap_evenly() -> None:
    shares = sweep([Interval("cpu", "a", "completed", 10, 14), Interval("cpu", "b", "completed", 12, 18)], 0, 100)
    assert shares.busy_ns == 8 * NS
    assert shares.share_ns == {Key("a", "completed"): 3 * NS, Key("b", "completed"): 5 * NS}
    assert shares.inflight_ns == {Key("a", "completed"): 4 * NS, Key("b", "completed"): 6 * NS}


def test_an_hour_of_concurrency_costs_an_hour_and_not_its_multiple() -> None:
    busy = [Interval("cpu", "a", "completed", 0, 3600)] * 64
    shares = sweep(busy, 0, 3600)
    assert shares.busy_ns == 3600 * NS == shares.share_ns[Key("a", "completed")]
    assert shares.inflight_ns[Key("a", "completed")] == 64 * 3600 * NS


@given(intervals, times, times)
def test_shares_sum_to_busy_exactly_and_are_never_negative(found: list[Interval], start: float, stop: float) -> None:
    shares = sweep(found, start, stop)
    assert sum(shares.share_ns.values(), Fraction(0)) == shares.busy_ns
    assert 0 <= shares.busy_ns <= max(0, round((stop - start) * NS))
    assert all(share >= 0 for share in shares.share_ns.values())
    assert all(shares.inflight_ns[key] >= share for key, share in shares.share_ns.items())


@given(intervals, st.randoms(use_true_random=False))
def test_the_order_of_intervals_makes_no_difference(found: list[Interval], rng) -> None:
    shuffled = list(found)
    rng.shuffle(shuffled)
    assert sweep(found, BASE, BASE + 60) == sweep(shuffled, BASE, BASE + 60)


@given(intervals)
def test_busy_is_the_length_of_the_union(found: list[Interval]) -> None:
    quarters = {q for i in found for q in range(round((i.start - BASE) * 4), round((i.stop - BASE) * 4))}
    assert sweep(found, BASE, BASE + 60).busy_ns == len(quarters) * NS // 4


@settings(max_examples=200)
@given(on_two_devices, st.lists(times, max_size=6))
def test_any_partition_into_steps_settles_the_whole(found: list[Interval], steps: list[float]) -> None:
    cursor, pending = float(BASE), tuple(found)
    settled: dict[tuple[int, str], list[Shares]] = {}
    for watermark in [*steps, BASE + 60.0]:  # not sorted: a watermark that goes back settles nothing
        step = advance(pending, cursor, watermark)
        assert step.late_ns == 0
        pending, cursor = step.remaining, max(cursor, watermark)
        for key, shares in step.shares.items():
            settled.setdefault(key, []).append(shares)
    assert pending == ()
    whole = advance(found, BASE, BASE + 60.0)
    assert {k: plain(total(v)) for k, v in settled.items()} == {k: plain(v) for k, v in whole.shares.items()}
    for device in ("gpu-a", "gpu-b"):
        direct = sweep([i for i in found if i.device == device], BASE, BASE + 60)
        assert plain(total([v for (_, d), v in whole.shares.items() if d == device])) == plain(direct)


@given(on_two_devices)
def test_ledger_rows_sum_to_each_hours_busy_time(found: list[Interval]) -> None:
    settlement = advance(found, BASE, BASE + 60.0)
    rows = cost_rows(settlement.shares)
    for (hour, device), shares in settlement.shares.items():
        own = [row for row in rows if (row.hour, row.device) == (hour, device)]
        assert sum(round(row.busy_share_s * NS) for row in own) == shares.busy_ns
        assert all(0 <= row.busy_share_s <= row.inflight_s for row in own)


def test_hours_are_apart() -> None:
    settlement = advance([Interval("cpu", "a", "completed", BASE, BASE + 60)], BASE, BASE + 100)
    assert [(row.hour, row.busy_share_s) for row in cost_rows(settlement.shares)] == [
        (BASE + 30 - HOUR_S, 30.0),
        (BASE + 30, 30.0),
    ]


def test_what_is_still_running_is_settled_up_to_the_watermark_and_stays() -> None:
    step = advance([Interval("cpu", "a", "completed", BASE, BASE + 60)], BASE, BASE + 20)
    assert sum(shares.busy_ns for shares in step.shares.values()) == 20 * NS
    assert step.remaining == (Interval("cpu", "a", "completed", BASE + 20, BASE + 60),)


def test_an_interval_that_comes_too_late_is_reported_and_changes_no_settled_hour() -> None:
    step = advance([Interval("cpu", "a", "completed", BASE, BASE + 30)], BASE + 20, BASE + 40)
    assert step.late_ns == 20 * NS
    assert sum(shares.busy_ns for shares in step.shares.values()) == 10 * NS


weights = st.lists(st.fractions(0, 1000, max_denominator=10**6), min_size=1, max_size=12)


@given(st.integers(0, 10**15), weights)
def test_apportioned_parts_sum_to_the_total_and_lie_within_one_of_their_quota(
    total: int, parts: list[Fraction]
) -> None:
    whole = apportion(total, parts)
    assert sum(whole) == total
    if sum(parts):
        quotas = [Fraction(total) * part / sum(parts) for part in parts]
        assert all(abs(part - quota) < 1 for part, quota in zip(whole, quotas, strict=True))


def test_nothing_negative_is_apportioned() -> None:
    for total_, parts in ((-1, [1]), (1, [-1]), (1, [])):
        with pytest.raises(ValueError, match=r"negative|nobody"):
            apportion(total_, parts)
    assert apportion(0, []) == []
