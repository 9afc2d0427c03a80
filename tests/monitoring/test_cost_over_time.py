"""Cost as time goes on: prices that change, settlement in steps, hours that are over, storage."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monitoring_records import record

from monitoring import settle
from monitoring.attribution import advance, cost_rows
from monitoring.cost import Prices
from monitoring.devices import DeviceReading, ProcessReading
from monitoring.running_statement import RunningStatement
from monitoring.sampler import Sampler
from monitoring.statement import Device, Statement, statement
from registry.entries import (
    HOUR_S,
    CostSeconds,
    CpuSeconds,
    HeldSeconds,
    Interval,
    MemorySeconds,
    StorageSeconds,
    period_end,
    period_of,
    periods,
)
from registry.ledger import Ledger
from registry.manifest import Artifact
from registry.store import Registry
from serving.control.storage import divided

HOUR = 1_800_000_000 // HOUR_S * HOUR_S
DEVICES = {"cpu": Device("cpu", 2.0), "gpu": Device("gpu")}
V1, V2 = "assistant@v1", "assistant@v2"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Registry.open(tmp_path / "registry.db")
    yield Ledger(opened.engine)
    opened.close()


def made(ledger: Ledger, since: float | None = None, until: float | None = None, **more) -> Statement:
    view = settle.view(ledger, since, until)
    given_ = {"prices": Prices(), "devices": DEVICES, "stop": until or HOUR + 10 * HOUR_S}
    return statement(view, **(given_ | more))


def allocated(found: Statement, currency: str = "USD") -> dict[tuple[str, str], int]:
    (bill,) = (
        one
        for one in found.bills
        if (one.basis, one.method, one.device, one.currency) == ("allocated", "inflight", "gpu", currency)
    )
    assert bill.total_nano == sum(line.nano for line in bill.lines)
    return {(line.kind, line.version): line.nano for line in bill.lines if line.nano}


class Gpu:
    """One GPU with one engine, read once a second."""

    kind = "gpu"

    def __init__(self) -> None:
        self.at = float(HOUR)

    def clock(self) -> float:
        return self.at

    def read(self, at: float, pids: Iterable[int] = ()) -> list[DeviceReading]:
        return [DeviceReading("gpu", "gpu", at, processes=(ProcessReading(7, memory_bytes=10**9),))]

    def close(self) -> None:
        pass


class Table:
    def read(self, pids: Iterable[int], at: float) -> dict[int, ProcessReading]:
        return {pid: ProcessReading(pid, HOUR - 5.0) for pid in pids}

    def owners(self, pids: Iterable[int], at: float) -> dict[int, int]:
        return {pid: pid for pid in pids}


def test_a_bill_over_a_changed_price_is_exact_to_the_second(ledger: Ledger) -> None:
    """3.60 an hour, from 10:00 after the hour 7.20: 601 s at a tenth of a cent, 599 s at two tenths. A request goes on
    across the change."""
    gpu = Gpu()
    sampler = Sampler(gpu, lambda: {7: V1}, clock=gpu.clock, processes=Table())
    sampler.cuts = settle.record_prices(ledger, Prices(gpu_hour=3.6), gpu.at)
    for second in range(1201):
        gpu.at = HOUR + float(second)
        sampler.sample_once()
        if second == 600:
            sampler.cuts = settle.record_prices(ledger, Prices(gpu_hour=7.2), gpu.at)
            assert settle.record_prices(ledger, Prices(gpu_hour=7.2), gpu.at) == sampler.cuts, "nothing new"
    asked = record(started_at=HOUR + 499.0, dispatched_s=1.0, duration_s=201.0, replica="assistant@v1/0")
    with ledger.transaction() as tx:
        settle.count(tx, [asked], lambda replica: "gpu")
        settle.settle(tx, HOUR + 1200.0)
        settle.add(tx, sampler.peek())
    found = made(ledger)
    assert allocated(found) == {
        ("version", V1): 101_000_000 + 198_000_000,  # 500 to 601, 601 to 700
        ("idle", V1): 500_000_000 + 1_000_000_000,
    }
    assert [one.at for one in found.prices] == [HOUR, HOUR + 601]
    assert allocated(made(ledger, HOUR, by=("version", "hour"))) == allocated(found), "both parts are of one hour"
    at_one_price = made(ledger, prices=Prices(gpu_hour=3.6), history=False)
    assert sum(allocated(at_one_price).values()) == 1_200_000_000


def test_old_hours_keep_their_price_and_another_currency_is_another_bill(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        tx.add_held_seconds([HeldSeconds(HOUR + n * HOUR_S, "gpu", 3600.0) for n in range(3)])
        tx.set_cursor(settle.SETTLED, HOUR + 3 * HOUR_S)
        tx.set_cursor(settle.HELD, HOUR + 3 * HOUR_S)
    settle.record_prices(ledger, Prices(gpu_hour=1.0), HOUR + 0.0)
    settle.record_prices(ledger, Prices(gpu_hour=2.0), HOUR + HOUR_S - 1.0)
    settle.record_prices(ledger, Prices("EUR", gpu_hour=4.0), HOUR + 2 * HOUR_S - 1.0)
    found = made(ledger, prices=Prices("EUR", gpu_hour=4.0))
    assert sum(allocated(found).values()) == 3_000_000_000
    assert sum(allocated(found, "EUR").values()) == 4_000_000_000
    assert sum(allocated(made(ledger, HOUR + HOUR_S, HOUR + 2 * HOUR_S)).values()) == 2_000_000_000
    with pytest.raises(ValueError, match="rewrite"), ledger.transaction() as tx:
        tx.record_prices(type(ledger.price_changes()[0])(HOUR, {}))


@given(
    st.floats(HOUR - 10, HOUR + 2 * HOUR_S, allow_nan=False),
    st.floats(0, 2 * HOUR_S),
    st.sets(st.integers(HOUR, HOUR + 2 * HOUR_S), max_size=4),
)
def test_periods_are_hours_cut_where_prices_change(start: float, length: float, cuts: set[int]) -> None:
    found = list(periods(start, start + length, sorted(cuts)))
    assert sum(seconds for _, seconds in found) == pytest.approx(length, abs=1e-5)
    for period, seconds in found:
        end = period_end(period, sorted(cuts))
        assert period_of(period, sorted(cuts)) == period
        assert seconds <= end - period <= HOUR_S
        assert not any(period < cut < end for cut in cuts)
        assert period // HOUR_S == (end - 1) // HOUR_S


spans = st.lists(
    st.tuples(
        st.integers(0, 7000),
        st.integers(1, 4000),
        st.sampled_from([V1, V2]),
        st.sampled_from(["", "k1", "k2"]),
        st.sampled_from(["", "beta"]),
    ),
    max_size=15,
)


@given(spans, st.lists(st.integers(0, 11_000), max_size=5), st.sets(st.integers(1, 7199), max_size=2))
@settings(max_examples=200, deadline=None)
def test_settling_in_steps_is_settling_at_once_by_key_segment_and_price(
    found: list[tuple[int, int, str, str, str]], steps: list[int], changes: set[int]
) -> None:
    cuts = sorted(HOUR + at for at in changes)
    waiting = [
        Interval("gpu", version, "completed", float(HOUR + start), float(HOUR + start + length), key, segment)
        for start, length, version, key, segment in found
    ]
    end = HOUR + 11_000.0
    whole = cost_rows(advance(waiting, HOUR, end, cuts).shares)
    sums: dict[tuple[object, ...], float] = {}
    cursor, pending = float(HOUR), tuple(waiting)
    for at in [*sorted(HOUR + one for one in steps), end]:
        step = advance(pending, cursor, float(at), cuts)
        pending, cursor = step.remaining, max(cursor, float(at))
        for row in cost_rows(step.shares):
            place = (row.hour, row.version, row.key_id, row.segment)
            sums[place] = sums.get(place, 0.0) + row.busy_share_s
    assert pending == ()
    assert {k: v for k, v in sums.items() if v > 1e-7} == pytest.approx(
        {
            (row.hour, row.version, row.key_id, row.segment): row.busy_share_s
            for row in whole
            if row.busy_share_s > 1e-7
        },
        abs=1e-7,
    )


def test_hours_that_are_over_are_added_up_once_and_the_statement_is_the_same(ledger: Ledger) -> None:
    rng = random.Random(5)
    running = RunningStatement(ledger)
    settle.record_prices(ledger, Prices(gpu_hour=2.0, cpu_hour=0.12), HOUR + 0.0)
    reads = []
    for hour in range(6):
        start = HOUR + hour * HOUR_S
        if hour == 3:
            settle.record_prices(ledger, Prices(gpu_hour=3.0, cpu_hour=0.12), start + 1000.0)
        records = [
            record(
                started_at=start + rng.random() * 3000,
                version=rng.choice(["v1", "v2"]),
                key_id=rng.choice(["", "k1"]),
                replica=rng.choice(["x/cpu", "x/gpu"]),
                completion_tokens=rng.randrange(500),
            )
            for _ in range(20)
        ]
        cuts = [one.at for one in ledger.price_changes()]
        with ledger.transaction() as tx:
            settle.count(tx, records, lambda replica: replica.rpartition("/")[2])
            settle.settle(tx, start + 3600.0)
            for period, seconds in periods(start, start + 3600.0, cuts):
                tx.add_held_seconds(HeldSeconds(period, device, seconds, 1e5, seconds) for device in DEVICES)
                tx.add_cpu_seconds([CpuSeconds(period, "cpu", V1, seconds * 0.7)])
                tx.add_memory_seconds(MemorySeconds(period, device, V2, seconds * 1e9) for device in DEVICES)
            settle.store(tx, {V1: 1e9}, start + 3600.0)
            tx.set_cursor(settle.HELD, start + 3600.0)
        more = {"prices": Prices(gpu_hour=3.0), "devices": DEVICES, "stop": start + 3600.0, "stored_bytes": {V1: 1e9}}
        shown = running.statement(**more, reserved_bytes={}, token_prices={})
        assert shown == made(ledger, **more)
        reads.append(shown)
    assert reads[-1].bills[0].total_nano > reads[0].bills[0].total_nano
    forgotten = running.statement(**(more | {"devices": {}}), reserved_bytes={}, token_prices={})
    assert forgotten == made(ledger, **(more | {"devices": {}})), "other devices: added up anew"


def test_storage_is_paid_by_bytes_and_time_whether_the_yard_runs_or_not(ledger: Ledger) -> None:
    settle.record_prices(ledger, Prices(storage_gb_month=0.73), float(HOUR))
    for at, stored in ((HOUR, {V1: 9e9}), (HOUR + 1800, {V1: 2e9, V2: 1e9}), (HOUR + 2 * HOUR_S, {V1: 2e9})):
        with ledger.transaction() as tx:
            settle.store(tx, stored, float(at))
    view = settle.view(ledger)
    assert view.storage == [
        StorageSeconds(HOUR, V1, 2e9 * 3600),
        StorageSeconds(HOUR, V2, 1e9 * 1800),
        StorageSeconds(HOUR + HOUR_S, V1, 2e9 * 3600),
    ]
    found = made(ledger, stored_bytes={V1: 2e9, V2: 1e9})
    # 0.73 per GB and 730 hours: a thousandth per GB-hour
    assert {one.version: one.nano for one in found.storage} == {V1: 4_000_000, V2: 500_000}
    assert {one.version: one.gb_months for one in found.storage} == pytest.approx({V1: 4 / 730, V2: 0.5 / 730})
    assert found.as_json()["storage"][0]["amount"] == 0.004
    assert found.bills == (), "no device has it on its bill"


def test_files_that_versions_share_are_divided_evenly() -> None:
    def file(sha256: str, size: int) -> Artifact:
        return Artifact(sha256=sha256, size_bytes=size, source="file:x", filename="x")

    base, adapter, gone = file("a", 900), file("b", 50), file("c", 7)
    found = divided({V1: [base], V2: [base, adapter, gone], "hosted@v1": []}, lambda one: one.sha256 != "c")
    assert found == {V1: 450.0, V2: 500.0, "hosted@v1": 0.0}


def test_a_version_that_was_only_warm_has_its_part_of_idle_time_also_in_hours_long_past(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        tx.add_cost_seconds([CostSeconds(HOUR, "gpu", V1, "completed", 1800.0, 1800.0)])
        tx.add_held_seconds([HeldSeconds(HOUR, "gpu", 3600.0)])
        tx.add_memory_seconds([MemorySeconds(HOUR, "gpu", V1, 1e9), MemorySeconds(HOUR, "gpu", V2, 3e9)])
        tx.set_cursor(settle.SETTLED, HOUR + 3600.0)
        tx.set_cursor(settle.HELD, HOUR + 3600.0)
    settle.record_prices(ledger, Prices(gpu_hour=2.0), float(HOUR))
    now = made(ledger, reserved_bytes={V1: 8e9})
    assert allocated(now) == {("version", V1): 1_000_000_000, ("idle", V1): 250_000_000, ("idle", V2): 750_000_000}
