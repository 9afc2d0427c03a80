"""Metrics of devices.

Owns: the families `modelyard_{gpu,cpu,device,sampler}_*`. Never: measuring.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from monitoring.devices import DeviceReading
from monitoring.gpu_metrics import collect_gpus, collect_use
from monitoring.sampler import SamplerStatus

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


def _family(name: str, help_text: str, attribute: str, devices: Sequence[DeviceReading]) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=["device"])
    for device in devices:
        value = getattr(device, attribute)
        if value is not None:
            family.add_metric([device.device], float(value))
    return family
