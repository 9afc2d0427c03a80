"""A ledger of the release before is brought up to date: every figure is what it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine

import registry.migrations
from monitoring import settle
from monitoring.cost import Prices
from monitoring.observe import REQUESTS
from monitoring.statement import Statement, statement, usage_of
from registry.entries import CostSeconds, CounterKey, Interval
from registry.ledger import Ledger
from registry.store import Registry

HOUR = 1_700_002_800
V1, V2 = "assistant@v1", "assistant@v2"
COST = [(HOUR, "gpu", V1, "completed", 600.25, 900.5), (HOUR + 3600, "gpu", V2, "shadow", 10.0, 10.0)]
COUNTERS = {
    ("modelyard_requests_total", ("assistant", "v1", "/v1/chat/completions", "completed")): 40,
    ("modelyard_requests_total", ("assistant", "v1", "/v1/completions", "completed")): 2,
    ("modelyard_requests_total", ("assistant", "v1", "/v1/chat/completions", "failed")): 3,
    ("modelyard_requests_total", ("", "", "/v1/chat/completions", "rejected")): 7,
    ("modelyard_shadow_requests_total", ("assistant", "v2", "completed")): 5,
    ("modelyard_shadow_requests_total", ("assistant", "v2", "cancelled")): 1,
    ("modelyard_prompt_tokens_total", ("assistant", "v1", "engine")): 4000,
    ("modelyard_prompt_tokens_total", ("assistant", "v1", "counted")): 100,
    ("modelyard_prompt_cached_tokens_total", ("assistant", "v1")): 1000,
    ("modelyard_completion_tokens_total", ("assistant", "v1", "engine")): 800,
    ("modelyard_phase_seconds_total", ("assistant", "v1", "prefill")): 31.5,
    ("modelyard_phase_tokens_total", ("assistant", "v1", "prefill")): 3000,
    ("modelyard_phase_seconds_total", ("assistant", "v1", "decode")): 80.25,
    ("modelyard_phase_tokens_total", ("assistant", "v1", "decode")): 760,
    ("modelyard_upstream_attempts_total", ("assistant", "v1")): 46,
}


def fill(connection: Connection) -> None:
    """As the release before wrote it."""
    for row in COST:
        connection.exec_driver_sql("INSERT INTO cost_seconds VALUES (?, ?, ?, ?, ?, ?)", row)
    held = "INSERT INTO held_seconds VALUES (?, 'gpu', 3600.0, 1800000.0, 3600.0)"
    for hour in (HOUR, HOUR + 3600):
        connection.exec_driver_sql(held, (hour,))
    connection.exec_driver_sql("INSERT INTO cpu_seconds VALUES (?, 'gpu', ?, 12.5)", (HOUR, V1))
    waiting = "INSERT INTO intervals (device, version, outcome, start, stop) VALUES ('gpu', ?, 'completed', 1.5, 2.5)"
    connection.exec_driver_sql(waiting, (V1,))
    for (name, labels), value in COUNTERS.items():
        connection.exec_driver_sql("INSERT INTO counters VALUES (?, ?, ?)", (name, json.dumps(labels), float(value)))
    for name in ("settled", "held"):
        connection.exec_driver_sql("INSERT INTO cursors VALUES (?, ?)", (name, HOUR + 7200.0))


@pytest.fixture
def ledger(tmp_path: Path):
    path = tmp_path / "registry.db"
    config = Config()
    config.set_main_option("script_location", str(Path(registry.migrations.__file__).parent))
    old = create_engine(f"sqlite:///{path}")
    with old.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        fill(connection)
    old.dispose()
    opened = Registry.open(path)
    yield Ledger(opened.engine)
    opened.close()


def made(ledger: Ledger, since: float | None = None, prices: Prices | None = None) -> Statement:
    view = settle.view(ledger, since)
    return statement(view, prices=prices or Prices(gpu_hour=1.8), devices={}, stop=HOUR + 7200.0)


def test_rows_are_what_they_were_and_nobodys(ledger: Ledger) -> None:
    assert ledger.cost_seconds() == [CostSeconds(*row) for row in COST]
    assert ledger.intervals() == [Interval("gpu", V1, "completed", 1.5, 2.5)]
    assert [row.held_s for row in ledger.held_seconds()] == [3600.0, 3600.0]
    assert len(ledger.cpu_seconds()) == 1
    assert {(key.name, key.labels): value for key, value in ledger.counters().items()} == COUNTERS
    assert ledger.price_changes() == []


def test_the_whole_ledgers_usage_and_unit_costs_go_on(ledger: Ledger) -> None:
    found = made(ledger)
    used = {one.version: one for one in found.usage}
    assert {one.version: one for one in usage_of(ledger.counters())} == used
    assert dict(used[V1].requests) == {"completed": 42, "failed": 3}
    unit = next(one for one in found.unit_costs if (one.version, one.basis) == (V1, "busy"))
    assert unit.per_1k_requests == pytest.approx(1000 * 600.25 * 1.8 / 3600 / 42)
    assert unit.token_weights == "phase_seconds"
    assert found.start == HOUR


def test_hours_of_which_usage_is_not_known_have_no_unit_costs(ledger: Ledger) -> None:
    late = made(ledger, HOUR + 3600.0)
    assert (late.unit_costs, late.usage) == ((), ())
    assert late.usage_from is not None
    assert late.usage_from > late.start
    assert late.bills[0].total_nano == 1_800_000_000
    assert made(ledger, HOUR - 90_000.0).unit_costs, "a window that begins before the ledger is all of it"


def test_the_first_prices_that_are_written_down_count_for_the_time_before(ledger: Ledger) -> None:
    before = made(ledger).bills[0].total_nano
    settle.record_prices(ledger, Prices(gpu_hour=1.8), HOUR + 100_000.0)
    settle.record_prices(ledger, Prices(gpu_hour=7.2), HOUR + 200_000.0)
    assert made(ledger, prices=Prices(gpu_hour=7.2)).bills[0].total_nano == before == 3_600_000_000


def test_it_is_written_as_before_afterwards(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        tx.add_cost_seconds([CostSeconds(*COST[0]), CostSeconds(*COST[0], key_id="k1")])
        tx.add_counters({CounterKey(REQUESTS, ("assistant", "v1", "/v1/completions", "completed")): 1})
    rows = [row for row in ledger.cost_seconds() if row.hour == HOUR]
    assert [(row.key_id, row.busy_share_s) for row in rows] == [("", 1200.5), ("k1", 600.25)]
