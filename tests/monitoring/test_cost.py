"""Bills: lines sum to their total to the last digit, and agree with arithmetic done by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.attribution import Key
from monitoring.cost import BASES, METHODS, NANO, UNATTRIBUTED, Bill, DeviceUse, Prices, bill, idle_weights
from monitoring.unit_costs import Subject as Of
from monitoring.unit_costs import TokenWeights, counted, unit_cost, weights_of
from registry.entries import UsageHour

V1, V2 = "assistant@v1", "assistant@v2"
seconds = st.floats(0, 1e6, allow_nan=False)
price = st.floats(0, 100, allow_nan=False)
prices = st.builds(
    Prices, st.just("EUR"), gpu_hour=price, cpu_hour=price, kwh=price, pue=st.floats(1, 3, allow_nan=False)
)
keys = st.builds(
    Key,
    st.sampled_from([V1, V2]),
    st.sampled_from(["completed", "failed", "cancelled"]),
    st.sampled_from(["", "key-1"]),
    st.sampled_from(["", "beta"]),
)
by_version = st.none() | st.dictionaries(st.sampled_from([V1, V2, "other@v1"]), seconds)
uses = st.builds(
    DeviceUse,
    device=st.just("cpu"),
    kind=st.sampled_from(["gpu", "cpu"]),
    start=st.just(0.0),
    stop=st.just(1.0),
    held_s=seconds,
    shares=st.dictionaries(keys, seconds, max_size=6),
    unsettled_s=seconds,
    cores=st.sampled_from([1.0, 1.5, 2.0, 64.0]),
    cpu_s=by_version,
    sm_s=by_version,
    token_s=st.none() | st.dictionaries(keys, seconds, max_size=6),
    energy_j=st.none() | st.floats(0, 1e9, allow_nan=False),
    reserved=st.dictionaries(st.sampled_from([V1, V2, "warm@v1"]), st.floats(0, 1e12)),
)


def use(**changes) -> DeviceUse:
    given_ = {
        "device": "cpu",
        "kind": "cpu",
        "start": 0.0,
        "stop": 3600.0,
        "held_s": 3600.0,
        "shares": {Key(V1, "completed"): 600.0, Key(V1, "failed"): 120.0, Key(V2, "completed"): 180.0},
        "unsettled_s": 36.0,
        "cores": 2.0,
    }
    return DeviceUse(**(given_ | changes))


def bills(one: DeviceUse, asked: Prices) -> list[Bill]:
    """By every basis and method that has a reading."""
    made = (bill(one, asked, basis, method) for method in METHODS[one.kind] for basis in BASES)
    return [found for found in made if found is not None]


def unit(nano: int, *rows: UsageHour, weights: TokenWeights | None = None):
    counts = counted((row, weights or TokenWeights.convention()) for row in rows)
    return unit_cost(
        Of(V1), nano, counts, basis="busy", method="inflight", device_kind="cpu", currency="USD", device="cpu"
    )


def done(**changes) -> UsageHour:
    return UsageHour(0, "cpu", V1, "completed", "", "", **changes)


@given(uses, prices)
def test_lines_sum_to_the_total_and_none_is_negative(one: DeviceUse, asked: Prices) -> None:
    for made in bills(one, asked):
        assert sum(line.nano for line in made.lines) == made.total_nano
        assert all(line.nano >= 0 and line.seconds >= 0 for line in made.lines)
        assert made.currency == "EUR"
        assert made.device_kind == one.kind
        assert made.residual_s >= 0


@given(uses, prices)
def test_methods_differ_in_whose_the_time_is_and_not_in_how_much_it_was(one: DeviceUse, asked: Prices) -> None:
    totals = {(made.basis, made.method): made.total_nano for made in bills(one, asked)}
    for (basis, method), total in totals.items():
        if method != "cpu_time":
            assert total == totals[basis, "inflight"]


@given(uses, prices)
def test_the_allocated_total_is_the_price_of_the_time_held(one: DeviceUse, asked: Prices) -> None:
    made = bill(one, asked, "allocated")
    assert made is not None
    if made.residual_s == 0:
        rate = asked.gpu_hour if one.kind == "gpu" else asked.cpu_hour * one.cores
        assert made.total == pytest.approx(rate * one.held_s / 3600, rel=1e-9, abs=1.1 / NANO)


def test_a_cpu_hour_by_hand() -> None:
    made = bill(use(), Prices(cpu_hour=0.12), "allocated")
    assert made is not None
    assert made.total_nano == 240_000_000  # two cores for an hour
    amounts = {(line.kind, line.version, line.outcome): line.nano for line in made.lines}
    assert amounts == {
        ("version", V1, "completed"): 40_000_000,  # 600 s x 2 cores x 0.12 / 3600
        ("version", V1, "failed"): 8_000_000,
        ("version", V2, "completed"): 12_000_000,
        ("idle", V1, ""): 88_800_000,  # nobody's memory is known, so half each
        ("idle", V2, ""): 88_800_000,
        ("unsettled", "", ""): 2_400_000,
    }
    busy = bill(use(), Prices(cpu_hour=0.12), "busy")
    assert busy is not None
    assert busy.total_nano == 60_000_000
    assert {line.kind for line in busy.lines} == {"version"}


def test_cpu_time_charges_core_seconds_and_keeps_engine_time_without_requests_apart() -> None:
    one = use(cpu_s={V1: 720.0, V2: 0.0, "other@v1": 30.0})
    made = bill(one, Prices(cpu_hour=3.6), "allocated", "cpu_time")
    assert made is not None
    amounts = {(line.version, line.outcome): line.amount for line in made.lines if line.kind == "version"}
    assert amounts[V1, "completed"] == pytest.approx(0.6)  # 720 s, five sixths of them
    assert amounts[V1, "failed"] == pytest.approx(0.12)
    assert amounts["other@v1", UNATTRIBUTED] == pytest.approx(0.03)
    assert made.total == pytest.approx(7.2)
    assert bill(use(), Prices(), "busy", "cpu_time") is None
    assert bill(use(kind="gpu", cpu_s={V1: 1.0}), Prices(), "busy", "cpu_time") is None


def test_energy_by_hand() -> None:
    made = bill(use(energy_j=3_600_000.0, kind="gpu"), Prices(kwh=0.30, pue=1.2), "energy")
    assert made is not None
    assert made.total_nano == 360_000_000  # one kilowatt-hour
    assert bill(use(), Prices(kwh=0.30), "energy") is None


def test_use_beyond_the_time_held_is_billed_and_named() -> None:
    made = bill(use(held_s=500.0, unsettled_s=0.0, cores=1.0), Prices(cpu_hour=3.6), "allocated")
    assert made is not None
    assert made.residual_s == 400.0
    assert made.total == pytest.approx(0.9)


def test_cost_per_1k_requests_counts_failed_work_and_successes_only() -> None:
    failed = UsageHour(0, "cpu", V1, "failed", "", "", requests=20, judged=20)
    found = unit(48_000_000, done(requests=480, judged=480, good=240), failed)
    assert found.per_1k_requests == pytest.approx(1000 * 0.048 / 480)
    assert found.per_1k_good == pytest.approx(1000 * 0.048 / 240)
    assert (found.requests, found.judged, found.good, found.cost_nano) == (480, 500, 240, 48_000_000)
    assert (found.currency, found.device_kind, found.basis, found.method) == ("USD", "cpu", "busy", "inflight")
    assert unit(48_000_000).per_1k_requests is None
    assert unit(48_000_000, failed).per_1k_good is None


def test_idle_time_is_paid_for_by_memory_reserved() -> None:
    assert idle_weights(use(reserved={V1: 300.0, "warm@v1": 100.0})) == {V1: 300, "warm@v1": 100}
    assert idle_weights(use()) == {V1: 1, V2: 1}
    assert idle_weights(use(shares={})) == {"": 1}
    allocated = bill(use(reserved={V1: 300.0, "warm@v1": 100.0}), Prices(cpu_hour=0.12), "allocated")
    assert allocated is not None
    idle = {line.version: line.nano for line in allocated.lines if line.kind == "idle"}
    assert idle == {V1: 133_200_000, "warm@v1": 44_400_000}


def test_multiprocessor_time_divides_the_busy_time() -> None:
    """900 busy seconds; V1's processes had three quarters of the multiprocessors' time, V2's none of it."""
    one = use(kind="gpu", sm_s={V1: 300.0, "other@v1": 100.0})
    made = bill(one, Prices(gpu_hour=3.6), "busy", "sm")
    assert made is not None
    assert {(line.version, line.outcome): line.nano for line in made.lines} == {
        (V1, "completed"): 562_500_000,  # five sixths of 675 s, as of its requests in flight
        (V1, "failed"): 112_500_000,
        ("other@v1", UNATTRIBUTED): 225_000_000,
    }
    assert bill(use(kind="gpu"), Prices(), "busy", "sm") is None


def test_tokens_divide_the_busy_time() -> None:
    one = use(kind="gpu", token_s={Key(V1, "completed"): 10.0, Key(V2, "completed"): 30.0})
    made = bill(one, Prices(gpu_hour=3.6), "busy", "tokens")
    assert made is not None
    assert {(line.version, line.outcome): line.nano for line in made.lines} == {
        (V1, "completed"): 225_000_000,
        (V2, "completed"): 675_000_000,
    }


@given(
    st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)),
    st.tuples(st.floats(0.001, 100), st.floats(0, 10), st.floats(0.001, 100)),
)
def test_tokens_times_their_price_is_the_cost_again(
    tokens_of: tuple[int, int, int], weights: tuple[float, float, float]
) -> None:
    fresh, cached, output = tokens_of
    row = done(requests=1, prompt_tokens=fresh + cached, cached_tokens=cached, completion_tokens=output)
    found = unit(48_000_000, row, weights=TokenWeights(*weights, "convention"))
    tokens = (
        (fresh, found.per_1m_input_tokens),
        (cached, found.per_1m_cached_tokens),
        (output, found.per_1m_output_tokens),
    )
    assert all((per is None) == (n == 0 or not (fresh or output or cached * weights[1])) for n, per in tokens)
    if fresh or output:
        assert sum(n * (per or 0) for n, per in tokens) / 1e6 == pytest.approx(0.048)


def test_token_weights_come_from_measured_phases_where_there_are_any() -> None:
    measured = TokenWeights.measured(2.0, 1000, 10.0, 500)
    assert (measured.uncached, measured.cached, measured.output, measured.source) == (0.002, 0, 0.02, "phase_seconds")
    assert TokenWeights.measured(0.0, 1000, 10.0, 500).source == "convention"
    phases = {V1: (2.0, 1000.0, 10.0, 500.0), V2: (0.0, 0.0, 1.0, 10.0)}
    assert weights_of(phases, V1) == measured
    assert weights_of(phases, V2) == TokenWeights(0.002, 0.0, 0.02, "pooled"), "comparable with the measured ones"
    assert weights_of({}, V1) == TokenWeights.convention()


def test_prices_are_read_as_the_decimals_that_were_written() -> None:
    assert Prices(gpu_hour=0.1).unit_hour("gpu") == Fraction(1, 10)
    with pytest.raises(ValueError, match="pue"):
        Prices(pue=0.5)
