"""A small yard's worth of monitoring on a real ledger: records in, snapshots out. For tests."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from monitoring_records import record

from monitoring import settle
from monitoring.anomaly import Finding
from monitoring.budgets import Budget, judge
from monitoring.cost import Prices
from monitoring.devices import DeviceReading
from monitoring.drift_watch_metrics import DriftState
from monitoring.engine_metrics import EngineReadings
from monitoring.engine_scrape import OUTCOMES, EngineMetrics, Target
from monitoring.forecast import Forecast
from monitoring.gpu_owners import GpuUse
from monitoring.host_metrics import DiskSpace
from monitoring.metrics import EngineState, LedgerState, Snapshot, WorkerState
from monitoring.outlook import Outlook
from monitoring.recent import RecentWindow
from monitoring.sample_ratio import Split
from monitoring.sampler import SamplerStatus, Sums
from monitoring.statement import Device, Statement, statement
from monitoring.usage import Slo
from monitoring.windows import Drift, FeatureDrift
from registry.entries import CpuSeconds, HeldSeconds
from registry.ledger import Ledger
from registry.store import Registry
from registry.usage import RequestRecord

HOUR = 1_700_002_800
VERSIONS = (("assistant", "v1"), ("assistant", "v2"))
PRICES = Prices("USD", gpu_hour=2.5, cpu_hour=0.12, kwh=0.3, pue=1.2, storage_gb_month=0.08)
SLOS = {"assistant": Slo(first_token_s=0.15, total_s=0.45, target=0.99)}
STORED = {"assistant@v1": 1e8, "assistant@v2": 2e8}
DEVICES = {"cpu": Device("cpu", cores=2.0), "GPU-1": Device("gpu")}


class Yard:
    """Opens the ledger under `folder`; every method is one ingestion as the control plane does it."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry.open(folder / "registry.db")
        self.ledger = Ledger(self.registry.engine)
        self.window = RecentWindow(600.0)

    def __enter__(self) -> Yard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.registry.close()

    def ingest(self, records: list[RequestRecord], *, watermark: float, sums: Sums | None = None) -> None:
        with self.ledger.transaction() as tx:
            device_of = {"gpu": "GPU-1"}
            settle.count(tx, records, lambda replica: device_of.get(replica.rpartition("/")[2], "cpu"), slos=SLOS)
            settle.settle(tx, watermark)
            settle.store(tx, STORED, watermark)
            settle.add(tx, sums or Sums())
        self.window.add(records)

    def statement(self, now: float, since: float | None = None) -> Statement:
        view = settle.view(self.ledger, since)
        memory = {"assistant@v1": 3e8}
        return statement(view, prices=PRICES, devices=DEVICES, reserved_bytes=memory, stored_bytes=STORED, stop=now)

    def snapshot(self, now: float) -> Snapshot:
        return Snapshot(
            counters=self.ledger.counters(),
            histograms=self.ledger.histograms(),
            versions=VERSIONS,
            engines=[EngineState(model, version, f"{model}@{version}/0", True, 1, 2) for model, version in VERSIONS],
            engine_metrics=[engine_metrics("v1"), engine_metrics("v2", "kv_cache_usage_ratio", "preemptions")],
            workers=[WorkerState("w0", True, 30_000_000, 3, 0.001, 7)],
            weights={("assistant", "v1"): 9000, ("assistant", "v2"): 1000},
            queues={"assistant": (2, 1, 0)},
            revisions={"assistant": 3},
            generation=7,
            rates=self.window.rates(now),
            devices=[
                DeviceReading("cpu", "cpu", now, 0, "a CPU", 2.0, 0.5, 4_000, 8_000, absent={"power_w": "no meter"}),
                gpu(now),
            ],
            engine_memory={"assistant@v1": 300_000_000, "assistant@v2": 200_000_000},
            sampler=SamplerStatus(
                *(now, 10, 0, 0, 0.0, 0.02, 0.002),
                counter_resets={("GPU-1", "energy"): 1},
                use={("GPU-1", "assistant@v1"): GpuUse(0.6, 300_000_000)},
            ),
            statement=self.statement(now),
            slo_targets={model: slo.target for model, slo in SLOS.items()},
            ledger=LedgerState(0.5, 1.0),
            splits=[Split("assistant", 0.8, {"v1": 91, "v2": 9})],
            disks=[DiskSpace("state", 60_000_000_000, 100_000_000_000)],
            drift=DriftState([quiet(model, version, now) for model, version in VERSIONS], now, checks=3, delivered=1),
            outlook=costs(now),
        )


def costs(now: float) -> Outlook:
    """A month that will cost 110 to 130, a budget of 100, and a version that became dearer."""
    month = Forecast(now - 86_400, now + 86_400, 60.0, 120.0, 110.0, 130.0, 20.0, "hour_of_week")
    dearer = Finding("assistant@v2", "anomaly", "", now - 21_600, now, 14, 500, 0.3, 0.2, 1.3, "more_idle")
    return Outlook(now, "USD", month, (judge(Budget("team", 100.0), month),), (dearer,))


def gpu(now: float) -> DeviceReading:
    return DeviceReading(
        *("gpu", "GPU-1", now, 0, "a GPU", None, 0.7, 10, 20, 300.0, 1e6, 60.0, 1.7e9, 2.6e9, 700.0),
        throttle_reasons=frozenset({"power_cap"}),
        ecc_corrected=3,
        ecc_uncorrected=0,
        xid_errors={31: 2},
        mig=False,
        mps=False,
    )


def engine_metrics(version: str, *absent: Any) -> EngineMetrics:
    """What an engine says of itself; without the readings that are `absent`."""
    values: dict[Any, float] = {
        "requests_running": 2,
        "requests_waiting": 1,
        "kv_cache_usage_ratio": 0.4,
        "prefix_cache_queries": 700,
        "prefix_cache_hits": 140,
        "preemptions": 0,
        "prompt_tokens": 700,
        "completion_tokens": 147,
    }
    given = {name: value for name, value in values.items() if name not in absent}
    target = Target("assistant", version, f"assistant@{version}/0", "http://127.0.0.1:1/metrics", 1)
    return EngineMetrics(target, EngineReadings(given, absent), dict.fromkeys(OUTCOMES, 0) | {"completed": 3})


def quiet(model: str, version: str, at: float) -> Drift:
    """A check that found nothing."""
    feature = FeatureDrift(
        feature="input_tokens",
        kind="data",
        scale="number",
        verdict="none",
        reference_n=300,
        current_n=200,
        effect=0.01,
    )
    return Drift(
        model=model,
        version=version,
        verdict="none",
        at=at,
        since=at - 600,
        until=at,
        reference="window",
        against=f"{model}@{version}",
        reference_n=300,
        current_n=200,
        kinds={"data": "none"},
        features=[feature],
    )


def second(at: float) -> tuple[list[RequestRecord], Sums]:
    """One second of traffic that began at `at`, on the CPU and on a GPU."""
    records = [
        record(started_at=at, duration_s=0.5, first_token_s=0.1, last_token_s=0.4, priority="interactive"),
        record(started_at=at, duration_s=0.4, first_token_s=0.1, last_token_s=0.3, version="v2", assigned="v1"),
        record(started_at=at, duration_s=0.2, outcome="failed", status=502, streamed=False, events=0),
        record(started_at=at, duration_s=0.3, replica="assistant@v1/gpu", first_token_s=0.1, last_token_s=0.3),
        record(started_at=at, duration_s=0.0, outcome="rejected", status=404, model="", version="", dispatched_s=0.0),
        record(
            started_at=at, duration_s=0.0, outcome="rejected", status=429, error="queue_full", version="", attempts=0
        ),
        record(started_at=at, duration_s=0.3, shadow_of="r", version="v2", dispatched_s=0.0, last_token_s=0.3),
    ]
    hour = int(at // 3600) * 3600
    held = (HeldSeconds(hour, "cpu", 1.0), HeldSeconds(hour, "GPU-1", 1.0, 300.0, 1.0))
    cpu = (CpuSeconds(hour, "cpu", "assistant@v1", 0.7), CpuSeconds(hour, "cpu", "assistant@v2", 0.2))
    return records, Sums(held, cpu, at + 1.0)
