"""Metrics of devices and of their cost.

Owns: the families `modelyard_{gpu,cpu,device,sampler,cost}_*`. Never: measuring, arithmetic of money.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from monitoring.devices import DeviceReading
from monitoring.gpu_metrics import collect_gpus, collect_use
from monitoring.sampler import SamplerStatus
from monitoring.statement import Statement

IDLE = "idle"
"""The value of `version` on the idle line; such a line has no model."""
ALL = "all"
"""The value of `version` on a bill that is shown as one line."""
COST = "modelyard_cost"
HELD_FROM = 0.9

_SHARED: tuple[tuple[str, str, str], ...] = (
    ("utilization_ratio", "Share of time in use since the last reading, 0 to 1.", "utilisation"),
    ("memory_used_bytes", "Memory in use.", "memory_used_bytes"),
    ("memory_total_bytes", "Memory there is.", "memory_total_bytes"),
)
_GPU_ONLY: tuple[tuple[str, str, str], ...] = (
    ("power_watts", "Power drawn now.", "power_w"),
    ("temperature_celsius", "Temperature of the chip.", "temperature_c"),
    ("sm_clock_hertz", "Clock of the multiprocessors.", "sm_clock_hz"),
    ("memory_clock_hertz", "Clock of the memory.", "memory_clock_hz"),
)


def collect_devices(devices: Sequence[DeviceReading], engine_memory: Mapping[str, int]) -> Iterator[Metric]:
    """Readings of GPUs under `modelyard_gpu_*`, of the CPU under `modelyard_cpu_*`; absent values have no series."""
    info = GaugeMetricFamily(
        "modelyard_device_info", "Always 1; what the device is.", labels=["device", "kind", "name"]
    )
    absent = GaugeMetricFamily(
        "modelyard_device_reading_absent", "1 for a value that the device does not give.", labels=["device", "reading"]
    )
    for device in devices:
        info.add_metric([device.device, device.kind, device.name or ""], 1)
        for reading in sorted(device.absent):
            absent.add_metric([device.device, reading], 1)
    yield from (info, absent)
    for kind in ("gpu", "cpu"):
        own = [device for device in devices if device.kind == kind]
        for name, help_text, attribute in _SHARED + (_GPU_ONLY if kind == "gpu" else ()):
            yield _family(f"modelyard_{kind}_{name}", help_text, attribute, own)
    yield _family("modelyard_cpu_cores", "Cores that are held.", "cores", [d for d in devices if d.kind == "cpu"])
    energy = CounterMetricFamily(
        "modelyard_gpu_energy_joules", "Energy since the driver was loaded.", labels=["device"]
    )
    for device in devices:
        if device.energy_j is not None:
            energy.add_metric([device.device], device.energy_j)
    yield energy
    yield from collect_gpus(devices)
    memory = GaugeMetricFamily(
        "modelyard_engine_memory_bytes", "Device memory of a version's engines.", labels=["model", "version"]
    )
    for ref, size in engine_memory.items():
        model, _, version = ref.partition("@")
        memory.add_metric([model, version], size)
    yield memory


def collect_sampler(status: SamplerStatus) -> Iterator[Metric]:
    """How the sampler is doing, and what it costs."""
    yield GaugeMetricFamily(
        "modelyard_sampler_last_reading_timestamp_seconds",
        "When devices were last read; 0: never.",
        value=status.last_at or 0.0,
    )
    for name, help_text, value in (
        ("modelyard_sampler_readings", "Rounds of readings.", float(status.samples)),
        ("modelyard_sampler_failures", "Rounds of readings that failed.", float(status.failures)),
        ("modelyard_sampler_gaps", "Times that readings lay too far apart.", float(status.gaps)),
        ("modelyard_sampler_cpu_seconds", "CPU seconds spent on reading.", status.own_cpu_s),
    ):
        yield CounterMetricFamily(name, help_text, value=value)
    yield from collect_use(status)


CostSeries = Mapping[tuple[str, tuple[str, ...]], float]
"""(family, label values) -> value of a cost counter."""


def cost_series(statement: Statement) -> CostSeries:
    """Seconds and money of the whole ledger per bill line; the lines of a device, basis and method sum to its bill.

    What is not settled yet is no counter: it moves to a version or to idle (a gauge shows it). The energy bill has one
    line here, as the parts of its lines may shrink as cheaper seconds follow.
    """
    series: dict[tuple[str, tuple[str, ...]], float] = {}
    for bill in statement.bills:
        head = (bill.basis, bill.method, bill.device)
        tail = (bill.device_kind, bill.currency)
        if bill.basis == "energy":
            series[COST, (*head, "", ALL, "", *tail)] = bill.total
            continue
        for line in bill.lines:
            if line.kind != "unsettled":
                model, _, version = line.version.partition("@")
                labels = (*head, model, version or IDLE, line.outcome)
                series[f"modelyard_{bill.device_kind}_seconds", labels] = line.seconds
                series[COST, (*labels, *tail)] = line.amount
    return series


def hold(before: CostSeries, now: CostSeries) -> CostSeries:
    """`now`, with values that fell a little held where they were.

    Idle time is what remains, so a settlement that runs ahead of the sampler takes a moment of it back. Prometheus
    would read that as a restart from zero and count all of it again. A fall by a tenth or more is a new beginning
    (other prices, another ledger) and shown.
    """
    return {
        key: before[key] if HELD_FROM * before.get(key, 0.0) < value < before.get(key, 0.0) else value
        for key, value in now.items()
    }


def collect_cost(statement: Statement, series: CostSeries) -> Iterator[Metric]:
    """The counters of `series`, and what is a gauge in `statement`."""
    lines = ["basis", "method", "device", "model", "version", "outcome"]
    families = {
        "modelyard_gpu_seconds": CounterMetricFamily(
            "modelyard_gpu_seconds", "GPU-seconds by whom they went to.", labels=lines
        ),
        "modelyard_cpu_seconds": CounterMetricFamily(
            "modelyard_cpu_seconds", "Core-seconds by whom they went to.", labels=lines
        ),
        COST: CounterMetricFamily(COST, "Cost by whom it went to.", labels=[*lines, "device_kind", "currency"]),
    }
    for (name, labels), value in series.items():
        families[name].add_metric(labels, value)
    yield from families.values()
    unsettled = GaugeMetricFamily(
        "modelyard_cost_unsettled",
        "Cost of time that is not divided yet.",
        labels=["basis", "method", "device", "currency"],
    )
    for bill in statement.bills:
        for line in bill.lines:
            if line.kind == "unsettled":
                unsettled.add_metric([bill.basis, bill.method, bill.device, bill.currency], line.amount)
    yield unsettled
    yield _per_1k(statement)
    yield GaugeMetricFamily(
        "modelyard_cost_residual_seconds",
        "Seconds of use beyond the seconds held: not 0 where sampling or settlement is wrong.",
        value=statement.residual_s,
    )


def _per_1k(statement: Statement) -> Metric:
    """Per version the sum over its devices."""
    family = GaugeMetricFamily(
        "modelyard_cost_per_1k_requests",
        "1000 x cost / successful requests; allocated and energy include the version's part of idle time.",
        labels=["basis", "method", "model", "version", "device_kind", "currency"],
    )
    sums: dict[tuple[str, ...], float] = {}
    for unit in statement.unit_costs:
        if unit.per_1k_requests is not None:
            model, _, version = unit.version.partition("@")
            key: tuple[str, ...] = (unit.basis, unit.method, model, version, unit.device_kind, unit.currency)
            sums[key] = sums.get(key, 0.0) + unit.per_1k_requests
    for key, value in sums.items():
        family.add_metric(key, value)
    return family


def _family(name: str, help_text: str, attribute: str, devices: Sequence[DeviceReading]) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=["device"])
    for device in devices:
        value = getattr(device, attribute)
        if value is not None:
            family.add_metric([device.device], float(value))
    return family
