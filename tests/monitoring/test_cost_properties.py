"""A thousand random hours of two devices: whatever happened, every bill's lines sum to its total, however it is cut."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitoring.attribution import advance, cost_rows
from monitoring.cost import BASES, METHODS, Prices, exact
from monitoring.statement import DIMENSIONS, Device, LedgerView, Statement, statement
from registry.entries import (
    HOUR_S,
    CpuSeconds,
    HeldSeconds,
    Interval,
    MemorySeconds,
    PriceChange,
    SmSeconds,
    UsageHour,
    period_end,
    periods,
)

HOUR = 1_800_000_000 // HOUR_S * HOUR_S
START, STOP = HOUR, HOUR + 2 * HOUR_S
DEVICES = {"gpu": Device("gpu"), "cpu": Device("cpu", cores=1.5)}
VERSIONS = ("chat@v1", "chat@v2", "code@v1")
OUTCOMES = ("completed", "failed", "cancelled", "truncated", "shadow")

moments = st.floats(START, STOP, allow_nan=False)
amounts = st.floats(0, 1e7, allow_nan=False)
devices = st.sampled_from(sorted(DEVICES))
versions = st.sampled_from(VERSIONS)
keys = st.sampled_from(["", "k1", "k2"])
segments = st.sampled_from(["", "beta"])
rates = st.floats(0, 50, allow_nan=False)
prices = st.builds(Prices, st.sampled_from(["EUR", "USD"]), rates, rates, rates, st.floats(1, 3), rates)


@st.composite
def interval(draw: st.DrawFn) -> Interval:
    start, stop = sorted((draw(moments), draw(moments)))
    owner = (draw(devices), draw(versions), draw(st.sampled_from(OUTCOMES)))
    return Interval(*owner, start, stop, draw(keys), draw(segments))


@st.composite
def usage(draw: st.DrawFn, hour: int) -> UsageHour:
    prompt = draw(st.integers(0, 10**6))
    count = draw(st.integers(0, 100))
    return UsageHour(
        hour=hour,
        device=draw(st.sampled_from(["", *DEVICES])),
        version=draw(versions),
        outcome=draw(st.sampled_from(OUTCOMES)),
        key_id=draw(keys),
        segment=draw(segments),
        requests=count,
        judged=count,
        good=draw(st.integers(0, count)),
        prompt_tokens=prompt,
        cached_tokens=draw(st.integers(0, prompt)),
        completion_tokens=draw(st.integers(0, 10**6)),
        prefill_s=draw(st.sampled_from([0.0, 3.5])),
        prefill_tokens=draw(st.sampled_from([0, 1000])),
        decode_s=draw(st.sampled_from([0.0, 70.25])),
        decode_tokens=draw(st.sampled_from([0, 900])),
    )


@st.composite
def scenario(draw: st.DrawFn) -> LedgerView:
    """Requests, readings and price changes of two hours; readings may be missing, or say less than the requests."""
    cuts = sorted(draw(st.sets(st.integers(START + 1, STOP - 1), max_size=2)))
    changes = [PriceChange(at, vars_of(draw(prices))) for at in [START - 100, *cuts]]
    settled = draw(st.floats(START, STOP, allow_nan=False))
    found = draw(st.lists(interval(), max_size=8))
    rows = cost_rows(advance(found, START, settled, [one.at for one in changes]).shares)
    places = [(period, name) for period, _ in periods(START, STOP, cuts) for name in sorted(DEVICES)]
    held = [
        HeldSeconds(
            period, name, share * (period_end(period, cuts) - period), draw(amounts), draw(st.sampled_from([0.0, 1.0]))
        )
        for period, name in places
        if (share := draw(st.sampled_from([0.0, 0.3, 1.0])))
    ]
    seconds = st.floats(0, 4000, allow_nan=False)
    some = st.lists(st.tuples(st.sampled_from(places), versions), unique=True, max_size=4)
    return LedgerView(
        rows=rows,
        held=held,
        cpu=[CpuSeconds(*place, version, draw(seconds)) for place, version in draw(some)],
        sm=[SmSeconds(*place, version, draw(seconds)) for place, version in draw(some)],
        memory=[MemorySeconds(*place, version, draw(st.floats(0, 1e14))) for place, version in draw(some)],
        usage=draw(st.lists(usage(HOUR), max_size=3)) + draw(st.lists(usage(HOUR + HOUR_S), max_size=2)),
        price_changes=changes,
        settled_until=settled,
        held_until=STOP,
    )


def vars_of(one: Prices) -> dict[str, object]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


def made(view: LedgerView, *by: str) -> Statement:
    return statement(view, prices=Prices(), devices=DEVICES, stop=STOP, by=by)  # type: ignore[arg-type]


def totals(found: Statement) -> dict[tuple[str, ...], int]:
    return {(one.device, one.basis, one.method, one.currency): one.total_nano for one in found.bills}


@given(scenario(), st.sets(st.sampled_from(DIMENSIONS)))
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_a_thousand_random_scenarios_sum_to_their_total(view: LedgerView, by: set[str]) -> None:
    found = made(view, *sorted(by))
    for bill in found.bills:
        assert sum(line.nano for line in bill.lines) == bill.total_nano
        assert all(line.nano >= 0 and line.seconds >= 0 for line in bill.lines)
        assert bill.residual_s >= 0
        places = [(one.kind, one.version, one.model, one.outcome, one.key, one.segment, one.hour) for one in bill.lines]
        assert len(places) == len(set(places)), "no two lines of one thing"
    sums = totals(found)
    assert sums == totals(made(view)), "whatever lines are told apart by"
    for (device, basis, method, currency), total in sums.items():
        if method != "cpu_time":
            assert total == sums[device, basis, "inflight", currency], "methods say whose it was, not how much"
        assert method in METHODS[DEVICES[device].kind]
        assert basis in BASES
    check_allocated(view, sums)


def check_allocated(view: LedgerView, sums: dict[tuple[str, ...], int]) -> None:
    """The allocated bill is price x time held, or used where that was more, period by period at its own price."""
    expected: defaultdict[tuple[str, str], Fraction] = defaultdict(Fraction)
    cuts = [one.at for one in view.price_changes]
    held = {(row.hour, row.device): row.held_s for row in view.held}
    used: defaultdict[tuple[int, str], float] = defaultdict(float)
    for row in view.rows:
        used[row.hour, row.device] += row.busy_share_s
    for period, device in held.keys() | used.keys():
        asked = Prices(**[one for one in view.price_changes if one.at <= period][-1].prices)
        after = max(0.0, period_end(period, cuts) - max(period, view.settled_until or 0.0))
        unsettled = min(held.get((period, device), 0.0), after)
        seconds = max(held.get((period, device), 0.0), used[period, device] + unsettled)
        cores = exact(DEVICES[device].cores) if device == "cpu" else 1
        expected[device, asked.currency] += asked.unit_hour(DEVICES[device].kind) * exact(seconds) * cores / HOUR_S
    for (device, currency), amount in expected.items():
        total = sums[device, "allocated", "inflight", currency]
        assert abs(total - amount * 10**9) <= 200, "nanoseconds are rounded, and each period to a billionth"


@given(scenario())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_finer_lines_sum_to_coarser_ones(view: LedgerView) -> None:
    fine, coarse = made(view, *DIMENSIONS), made(view, "model", "hour")
    for small, big in zip(fine.bills, coarse.bills, strict=True):
        sums: defaultdict[tuple[object, ...], int] = defaultdict(int)
        for line in small.lines:
            sums[line.kind, line.model, line.hour] += line.nano
        assert {k: v for k, v in sums.items() if v} == {
            (line.kind, line.model, line.hour): line.nano for line in big.lines if line.nano
        }


@given(scenario())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_tokens_times_their_unit_cost_and_requests_times_theirs_are_the_cost(view: LedgerView) -> None:
    found = made(view, "version")
    used = {one.version: one for one in found.usage}
    for unit in found.unit_costs:
        own, cost = used[unit.version], unit.cost_nano / 1e9
        if unit.per_1k_requests is not None:
            assert abs(unit.per_1k_requests * own.requests["completed"] / 1000 - cost) <= 1e-9 * (1 + cost)
        kinds = (
            (own.prompt_tokens - own.cached_tokens, unit.per_1m_input_tokens),
            (own.cached_tokens, unit.per_1m_cached_tokens),
            (own.completion_tokens, unit.per_1m_output_tokens),
        )
        if any(per for _, per in kinds):
            assert abs(sum(n * (per or 0.0) for n, per in kinds) / 1e6 - cost) <= 1e-9 * (1 + cost)
