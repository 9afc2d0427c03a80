"""Metrics over a real ledger: values, names, bounded labels, counters that survive a restart."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from components import ROOT
from monitoring_records import record
from monitoring_yard import HOUR, PRICES, Yard, second
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from monitoring import settle
from monitoring.cost import Prices
from monitoring.cost_series import hold
from monitoring.metrics import LedgerState, Metrics, Snapshot
from monitoring.sampler import SamplerStatus, Sums
from monitoring.statement import LedgerView, statement
from registry.entries import CostSeconds, HeldSeconds

CONTRACT = {
    *("modelyard_requests", "modelyard_request_duration_seconds", "modelyard_time_to_first_token_seconds"),
    *("modelyard_inter_token_latency_seconds", "modelyard_router_overhead_seconds", "modelyard_prompt_tokens"),
    *("modelyard_completion_tokens", "modelyard_tokens_per_second", "modelyard_inflight_requests"),
    *("modelyard_engine_up", "modelyard_gpu_utilization_ratio", "modelyard_gpu_memory_used_bytes"),
    *("modelyard_gpu_power_watts", "modelyard_gpu_energy_joules", "modelyard_gpu_seconds", "modelyard_cpu_seconds"),
    *("modelyard_cost", "modelyard_cost_per_1k_requests", "modelyard_route_weight", "modelyard_rollout_state"),
    "modelyard_build_info",
    *("modelyard_router_resident_bytes", "modelyard_ledger_lag_seconds", "modelyard_cost_residual_seconds"),
}


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    with Yard(tmp_path) as opened:
        yield opened


@pytest.fixture
def shown() -> tuple[CollectorRegistry, Metrics]:
    registry = CollectorRegistry()
    return registry, Metrics(registry, version="0.1.0", python="3.11")


def play(yard: Yard, seconds: int, start: float = HOUR) -> float:
    for n in range(seconds):
        records, sums = second(start + n)
        yard.ingest(records, watermark=start + n + 0.9, sums=sums)
    return start + seconds


def test_every_name_of_the_contract_is_there_with_data(yard: Yard, shown: tuple[CollectorRegistry, Metrics]) -> None:
    registry, metrics = shown
    metrics.publish(yard.snapshot(play(yard, 3)))
    families = {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}
    assert {name for name in CONTRACT if not (name in families and families[name].samples)} == set()
    assert all(name.startswith("modelyard_") for name in families)


def test_values_come_from_the_ledger(yard: Yard, shown: tuple[CollectorRegistry, Metrics]) -> None:
    registry, metrics = shown
    metrics.publish(yard.snapshot(play(yard, 3)))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    who = {"model": "assistant", "version": "v1"}
    chat = {"endpoint": "/v1/chat/completions"}
    assert value("modelyard_requests_total", **who, **chat, outcome="completed") == 6
    assert value("modelyard_requests_total", **who, **chat, outcome="failed") == 3
    assert value("modelyard_requests_total", model="", version="", **chat, outcome="rejected") == 3
    assert value("modelyard_completion_tokens_total", model="assistant", version="v2", source="engine") == 63
    assert value("modelyard_fallbacks_total", model="assistant", version="v2") == 3
    assert value("modelyard_time_to_first_token_seconds_bucket", **who, le="0.05") == 0
    assert value("modelyard_time_to_first_token_seconds_bucket", **who, le="0.1") == 6
    assert value("modelyard_time_to_first_token_seconds_bucket", **who, le="+Inf") == 6
    assert value("modelyard_inflight_requests", **who) == 2
    assert value("modelyard_route_weight", **who) == 9000
    assert value("modelyard_build_info", version="0.1.0", python="3.11") == 1
    assert value("modelyard_gpu_power_watts", device="GPU-1") == 300
    assert value("modelyard_device_reading_absent", device="cpu", reading="power_w") == 1
    assert value("modelyard_cost_residual_seconds") == 0


def test_versions_have_series_before_their_first_request(shown: tuple[CollectorRegistry, Metrics]) -> None:
    registry, metrics = shown
    metrics.publish(Snapshot(versions=[("assistant", "v9")]))
    labels = {"model": "assistant", "version": "v9"}
    failed = {"endpoint": "/v1/chat/completions", "outcome": "failed"}
    assert registry.get_sample_value("modelyard_requests_total", labels | failed) == 0
    assert registry.get_sample_value("modelyard_fallbacks_total", labels) == 0
    assert registry.get_sample_value("modelyard_route_weight", labels) == 0


@pytest.mark.parametrize(
    ("weights", "paused", "state"),
    [
        ({"v1": 10_000, "v2": 0}, (), "stable"),
        ({"v1": 9_000, "v2": 1_000}, (), "progressing"),
        ({"v1": 9_000, "v2": 1_000}, ("assistant",), "paused"),
        ({"v1": 10_000}, ("assistant",), "paused"),
        ({"v1": 10_000}, ("other",), "stable"),
    ],
)
def test_a_route_is_in_one_state(
    shown: tuple[CollectorRegistry, Metrics], weights: dict[str, int], paused: tuple[str, ...], state: str
) -> None:
    registry, metrics = shown
    both = {("assistant", label): weight for label, weight in weights.items()} | {("other", "v1"): 10_000}
    metrics.publish(Snapshot(weights=both, revisions={"assistant": 1, "other": 1}, paused=paused))
    found = {
        one: registry.get_sample_value("modelyard_rollout_state", {"model": "assistant", "state": one})
        for one in ("stable", "progressing", "paused")
    }
    assert found == dict.fromkeys(found, 0.0) | {state: 1.0}


def test_counters_go_on_after_a_restart(tmp_path: Path) -> None:
    labels = {"model": "assistant", "version": "v1", "endpoint": "/v1/chat/completions", "outcome": "completed"}
    seen = []
    for start in (HOUR, HOUR + 10):
        registry = CollectorRegistry()
        metrics = Metrics(registry, version="0.1.0")
        with Yard(tmp_path) as yard:
            metrics.publish(yard.snapshot(play(yard, 2, start)))
        seen.append(registry.get_sample_value("modelyard_requests_total", labels))
    assert seen == [4, 8]


def test_the_lines_of_a_bill_sum_to_the_price_of_the_time_held(yard: Yard) -> None:
    made = yard.statement(play(yard, 10))
    assert {(bill.device, bill.basis, bill.method) for bill in made.bills} == {
        ("cpu", "allocated", "inflight"),
        ("cpu", "busy", "inflight"),
        ("cpu", "allocated", "cpu_time"),
        ("cpu", "busy", "cpu_time"),
        ("cpu", "allocated", "tokens"),
        ("cpu", "busy", "tokens"),
        ("GPU-1", "allocated", "inflight"),
        ("GPU-1", "busy", "inflight"),
        ("GPU-1", "energy", "inflight"),
        ("GPU-1", "allocated", "tokens"),
        ("GPU-1", "busy", "tokens"),
        ("GPU-1", "energy", "tokens"),
    }
    cpu = next(
        bill for bill in made.bills if (bill.device, bill.basis, bill.method) == ("cpu", "allocated", "inflight")
    )
    assert cpu.total == pytest.approx(10 * 2 * 0.12 / 3600, abs=1e-9)
    assert sum(line.nano for line in cpu.lines) == cpu.total_nano
    seconds = {(line.kind, line.version, line.outcome): line.seconds for line in cpu.lines}
    # 0.499 s of each second are busy on the CPU, twice over as there are two cores; 0.1 s wait for settlement.
    assert sum(s for (kind, *_), s in seconds.items() if kind == "version") == pytest.approx(10 * 2 * 0.499, abs=1e-5)
    assert seconds["unsettled", "", ""] == pytest.approx(0.2, abs=1e-5)
    assert seconds["version", "assistant@v1", "failed"] == pytest.approx(10 * 2 * 0.199 / 3, abs=1e-5)
    assert made.residual_s == 0
    assert [(one.version, one.requests["completed"], one.prompt_tokens) for one in made.usage] == [
        ("assistant@v1", 20, 3000),
        ("assistant@v2", 10, 1000),
    ]
    unit = next(u for u in made.unit_costs if (u.version, u.basis, u.method) == ("assistant@v2", "busy", "inflight"))
    assert unit.token_weights == "phase_seconds"
    plain = made.as_json()
    assert plain["bills"][0]["lines"][0]["amount"] == made.bills[0].lines[0].amount


def test_a_window_has_bills_usage_and_unit_costs_of_its_own(yard: Yard) -> None:
    now = play(yard, 4, HOUR + 3598)
    late = yard.statement(now, since=HOUR + 3600)
    held = [bill for bill in late.bills if (bill.device, bill.basis, bill.method) == ("cpu", "allocated", "inflight")]
    assert sum(line.seconds for line in held[0].lines) == pytest.approx(4.0)  # two seconds on two cores
    assert {one.version: one.requests["completed"] for one in late.usage} == {"assistant@v1": 4, "assistant@v2": 2}
    busy = next(bill for bill in late.bills if (bill.device, bill.basis) == ("cpu", "busy"))
    own = sum(line.amount for line in busy.lines if line.version == "assistant@v1")
    unit = next(u for u in late.unit_costs if (u.version, u.basis, u.device) == ("assistant@v1", "busy", "cpu"))
    assert unit.per_1k_requests == pytest.approx(1000 * own / 4)
    assert yard.statement(now).start == HOUR


def test_time_is_settled_once_whatever_the_steps(yard: Yard, tmp_path: Path) -> None:
    records = [record(started_at=HOUR + n / 7, duration_s=1.0 + n % 3) for n in range(40)]
    for n, one in enumerate(records):
        yard.ingest([one], watermark=HOUR + n / 7)  # the next one starts later than this
    yard.ingest([], watermark=HOUR + 60.0)
    yard.ingest([], watermark=HOUR + 30.0)
    other = tmp_path / "other"
    other.mkdir()
    with Yard(other) as whole:
        whole.ingest(records, watermark=HOUR + 60.0)
        expected = {(r.hour, r.version, r.outcome): r.busy_share_s for r in whole.ledger.cost_seconds()}
    found = {(r.hour, r.version, r.outcome): r.busy_share_s for r in yard.ledger.cost_seconds()}
    assert found == pytest.approx(expected, abs=1e-6)
    assert yard.ledger.intervals() == []


def test_a_transaction_that_fails_counts_nothing(yard: Yard) -> None:
    records, sums = second(HOUR)

    def fail() -> None:
        with yard.ledger.transaction() as tx:
            settle.count(tx, records, lambda _: "cpu")
            settle.settle(tx, HOUR + 1.0)
            settle.add(tx, sums)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert yard.ledger.counters() == {}
    assert yard.ledger.cost_seconds() == yard.ledger.held_seconds() == []
    assert yard.ledger.cursor(settle.SETTLED) is None


def test_cost_counters_do_not_fall_a_little() -> None:
    key, other = ("modelyard_cost", ("a",)), ("modelyard_cost", ("b",))
    assert hold({key: 10.0}, {key: 9.9, other: 1.0}) == {key: 10.0, other: 1.0}
    assert hold({key: 10.0}, {key: 2.0}) == {key: 10.0}  # nothing is taken back, so it would be a restart from zero
    assert hold({key: 10.0}, {key: 11.0}) == {key: 11.0}


def test_idle_that_shrinks_by_a_late_settlement_is_held_in_the_metric() -> None:
    def view(busy_s: float) -> LedgerView:
        row = CostSeconds(HOUR, "cpu", "assistant@v1", "completed", busy_s, busy_s)
        return LedgerView([row], [HeldSeconds(HOUR, "cpu", 100.0)], settled_until=HOUR + 100.0, held_until=HOUR + 100.0)

    registry = CollectorRegistry()
    metrics = Metrics(registry, version="0.1.0")
    labels = {
        "basis": "allocated",
        "method": "inflight",
        "device": "cpu",
        "model": "assistant",
        "version": "v1",
        "outcome": "idle",
    }
    seen = []
    for busy_s in (10.0, 10.5):
        metrics.publish(Snapshot(statement=statement(view(busy_s), prices=PRICES, devices={}, stop=HOUR + 100.0)))
        seen.append(registry.get_sample_value("modelyard_cpu_seconds_total", labels))
    assert seen == [90.0, 90.0]


def test_the_lag_grows_where_nothing_is_published() -> None:
    now = [100.0]
    registry = CollectorRegistry()
    metrics = Metrics(registry, version="0.1.0", clock=lambda: now[0])
    metrics.publish(Snapshot(ledger=LedgerState(0.5, 2.0)))
    now[0] += 90.0
    assert registry.get_sample_value("modelyard_ledger_lag_seconds") == 90.5
    assert registry.get_sample_value("modelyard_settlement_lag_seconds") == 92.0


def test_the_documentation_names_every_metric_and_its_labels(
    yard: Yard, shown: tuple[CollectorRegistry, Metrics]
) -> None:
    registry, metrics = shown
    metrics.publish(yard.snapshot(play(yard, 2)))
    rows = [
        line.split("|")
        for line in (ROOT / "docs" / "metrics.md").read_text().splitlines()
        if line.startswith("| `modelyard_")
    ]
    documented = {row[1].strip(" `"): row[2] for row in rows}
    families = {f.name + ("_total" if f.type == "counter" else ""): f for f in registry.collect()}
    assert set(documented) == set(families)
    for name, family in families.items():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert set(documented[name].replace("`", "").replace(",", " ").split()) == labels, name


def test_an_empty_ledger_has_an_empty_statement() -> None:
    made = statement(LedgerView(), prices=Prices(), devices={}, stop=5.0)
    assert (made.bills, made.unit_costs, made.usage, made.residual_s) == ((), (), (), 0.0)


def test_promtool_finds_nothing_to_say(
    yard: Yard, shown: tuple[CollectorRegistry, Metrics], program: Callable[[str], str]
) -> None:
    registry, metrics = shown
    metrics.publish(yard.snapshot(play(yard, 3)))
    checked = subprocess.run(
        [program("promtool"), "check", "metrics"], input=generate_latest(registry), capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_series_are_bounded_whatever_clients_ask_for(yard: Yard, shown: tuple[CollectorRegistry, Metrics]) -> None:
    registry, metrics = shown
    counts = []
    for scans in (1, 500):
        flood = [
            record(endpoint=f"/scan/{n}", model="", version="", outcome="rejected", dispatched_s=0.0, error=f"e{n}")
            for n in range(scans)
        ]
        yard.ingest(flood, watermark=HOUR, sums=Sums())
        metrics.publish(replace(yard.snapshot(HOUR), statement=None))
        counts.append(sum(len(family.samples) for family in registry.collect()))
    assert counts[0] == counts[1]


def test_devices_that_were_never_read_are_told_apart_from_a_sampler_that_is_not_there() -> None:
    """The alert on stale readings compares the last one's time: without a series it could never fire."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, version="0.1.0")
    metrics.publish(Snapshot(sampler=SamplerStatus(samples=9, failures=9, last_error="NVML does not answer")))
    assert registry.get_sample_value("modelyard_sampler_last_reading_timestamp_seconds") == 0.0
