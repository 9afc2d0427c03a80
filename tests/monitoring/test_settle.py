"""Reading a window of the ledger while it is written, and what its bills say of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitoring import settle
from monitoring.cost import Prices
from monitoring.statement import LedgerView, statement
from registry.entries import CostSeconds, CounterKey, HeldSeconds
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
        counters={
            CounterKey("modelyard_requests_total", ("assistant", "v1", "/v1/chat/completions", "completed")): 100
        },
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
