"""Reading a window of the ledger while it is written, and what its bills say of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monitoring_records import record

from monitoring import settle
from monitoring.cost import Prices
from monitoring.statement import LedgerView, statement
from registry.entries import CostSeconds, HeldSeconds, UsageHour
from registry.ledger import Ledger
from registry.store import Registry

HOUR = 1_800_000_000 // 3600 * 3600
V1, V2 = "assistant@v1", "assistant@v2"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Registry.open(tmp_path / "registry.db")
    yield Ledger(opened.engine)
    opened.close()


def test_a_view_is_of_one_state_while_seconds_are_settled(ledger: Ledger) -> None:
    """Rows before a settlement and the watermark after it would make a long request idle time."""
    steps = 150

    def write() -> None:
        for step in range(1, steps + 1):
            with ledger.transaction() as tx:
                tx.add_cost_seconds([CostSeconds(HOUR, "cpu", V1, "completed", 1.0, 1.0)])
                tx.set_cursor(settle.SETTLED, HOUR + step)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while writer.is_alive():
            found = settle.view(ledger)
            settled_s = (found.settled_until or HOUR) - HOUR
            assert sum(row.busy_share_s for row in found.rows) == settled_s
    finally:
        writer.join()


def test_a_window_begins_with_the_hour_that_its_first_row_is_of(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        tx.add_held_seconds([HeldSeconds(HOUR, "gpu", 3600.0), HeldSeconds(HOUR + 3600, "gpu", 900.0)])
    found = settle.view(ledger, HOUR + 2700.0)
    made = statement(found, prices=Prices(gpu_hour=2.0), devices={}, stop=HOUR + 4500.0)
    (allocated,) = (one for one in made.bills if one.basis == "allocated")
    assert allocated.total == 2.5, "an hour and a quarter"
    assert (allocated.start, made.start) == (HOUR, HOUR), "and it says from when"


def test_a_loaded_version_without_requests_bears_its_part_of_the_idle_time() -> None:
    """Two versions hold half the GPU each, one is asked: the other's idle half is not the first one's cost."""
    view = LedgerView(
        rows=[CostSeconds(HOUR, "gpu", V1, "completed", 360.0, 360.0)],
        held=[HeldSeconds(HOUR, "gpu", 3600.0)],
        usage=[UsageHour(HOUR, "gpu", V1, "completed", "", "", requests=100)],
        settled_until=HOUR + 3600.0,
        held_until=HOUR + 3600.0,
    )

    def per_1k(reserved: dict[str, float]) -> float | None:
        made = statement(
            view, prices=Prices(gpu_hour=1.0), devices={}, reserved_bytes=reserved, stop=HOUR + 3600.0
        ).unit_costs
        (unit,) = (one for one in made if one.basis == "allocated")
        return unit.per_1k_requests

    assert per_1k({V1: 8e9}) == pytest.approx(10.0)
    assert per_1k({V1: 8e9, V2: 8e9}) == pytest.approx(1000 * (0.1 + 0.9 / 2) / 100)


spans = st.lists(
    st.tuples(st.sampled_from(["v1", "v2"]), st.booleans(), st.integers(0, 5000), st.integers(1, 3000)), max_size=25
)


@given(spans)
@settings(max_examples=30, deadline=None)
def test_a_bill_with_copies_of_requests_sums_to_the_last_digit(found: list[tuple[str, bool, int, int]]) -> None:
    """Copies share the device with what clients asked for; their time has a line, and no request pays for it."""
    records = [
        record(
            version=version,
            shadow_of="r" if copy else "",
            started_at=HOUR + start / 1000,
            dispatched_s=0.001,
            duration_s=0.001 + length / 1000,
        )
        for version, copy, start, length in found
    ]
    with TemporaryDirectory() as folder:
        registry = Registry.open(Path(folder) / "registry.db")
        ledger = Ledger(registry.engine)
        with ledger.transaction() as tx:
            settle.count(tx, records, lambda replica: "gpu")
            settle.settle(tx, HOUR + 100.0)
            tx.add_held_seconds([HeldSeconds(HOUR, "gpu", 100.0)])
            tx.set_cursor(settle.HELD, HOUR + 100.0)
        view = settle.view(ledger)
        registry.close()
    made = statement(view, prices=Prices(gpu_hour=2.5), devices={}, stop=HOUR + 100.0)
    for bill in made.bills:
        assert sum(line.nano for line in bill.lines) == bill.total_nano
    busy = next(bill for bill in made.bills if bill.basis == "busy")
    copied = {version for version, copy, *_ in found if copy}
    assert {line.version for line in busy.lines if line.outcome == "shadow"} == {f"assistant@{one}" for one in copied}
    for unit in made.unit_costs:
        if unit.basis == "busy" and unit.per_1k_requests is not None:
            if unit.method != "inflight":
                continue
            own = [line for line in busy.lines if line.version == unit.version and line.outcome != "shadow"]
            asked = sum(f"assistant@{version}" == unit.version and not copy for version, copy, *_ in found)
            assert unit.per_1k_requests * asked / 1000 == pytest.approx(sum(line.amount for line in own), abs=1e-8)
    for used in made.usage:
        own_copies = sum(f"assistant@{version}" == used.version and copy for version, copy, *_ in found)
        assert used.shadow_requests == own_copies
