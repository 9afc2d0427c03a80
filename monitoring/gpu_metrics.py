"""Metrics of GPUs beyond those that a CPU has too.

Owns: the families `modelyard_gpu_*` of limits, errors, modes, processes and loss. Never: measuring.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from monitoring.devices import DeviceReading
from monitoring.gpu_values import THROTTLE_REASONS
from monitoring.sampler import SamplerStatus


def collect_gpus(devices: Sequence[DeviceReading]) -> Iterator[Metric]:
    """What GPUs say of themselves; a value that one does not give has no series."""
    gpus = [device for device in devices if device.kind == "gpu"]
    up = GaugeMetricFamily(
        "modelyard_gpu_up", "1 where the GPU answers; 0: it or its driver is lost.", labels=["device"]
    )
    limit = GaugeMetricFamily("modelyard_gpu_power_limit_watts", "Power that it may draw now.", labels=["device"])
    throttled = GaugeMetricFamily(
        "modelyard_gpu_throttled", "1 for each reason why clocks are held down now.", labels=["device", "reason"]
    )
    ecc = CounterMetricFamily(
        "modelyard_gpu_ecc_errors", "Memory errors of the board's life.", labels=["device", "kind"]
    )
    xid = CounterMetricFamily(
        "modelyard_gpu_xid_errors", "XID errors that the driver reported.", labels=["device", "xid"]
    )
    mode = GaugeMetricFamily(
        "modelyard_gpu_mode", "1 where the GPU is divided (mig) or shared (mps).", labels=["device", "mode"]
    )
    for gpu in gpus:
        up.add_metric([gpu.device], float(not gpu.lost))
        if gpu.power_limit_w is not None:
            limit.add_metric([gpu.device], gpu.power_limit_w)
        if gpu.throttle_reasons is not None:
            for reason in THROTTLE_REASONS:
                throttled.add_metric([gpu.device, reason], float(reason in gpu.throttle_reasons))
        for kind, count in (("corrected", gpu.ecc_corrected), ("uncorrected", gpu.ecc_uncorrected)):
            if count is not None:
                ecc.add_metric([gpu.device, kind], count)
        for number, count in sorted((gpu.xid_errors or {}).items()):
            xid.add_metric([gpu.device, str(number)], count)
        for name, on in (("mig", gpu.mig), ("mps", gpu.mps)):
            if on is not None:
                mode.add_metric([gpu.device, name], float(on))
    yield from (up, limit, throttled, ecc, xid, mode)


def collect_use(status: SamplerStatus) -> Iterator[Metric]:
    """What versions' processes had of each GPU, and counters that began anew."""
    labels = ["device", "model", "version"]
    utilisation = GaugeMetricFamily(
        "modelyard_gpu_process_utilization_ratio",
        "Share of the multiprocessors that a version's engines had since the last reading, 0 to 1.",
        labels=labels,
    )
    memory = GaugeMetricFamily(
        "modelyard_gpu_process_memory_bytes", "Memory of a GPU that a version's engines hold.", labels=labels
    )
    for (device, ref), use in sorted(status.use.items()):
        model, _, version = ref.partition("@")
        if use.utilisation is not None:
            utilisation.add_metric([device, model, version], use.utilisation)
        if use.memory_bytes is not None:
            memory.add_metric([device, model, version], use.memory_bytes)
    resets = CounterMetricFamily(
        "modelyard_gpu_resets",
        "Times that a counter of the GPU went back: energy of such an interval is not metered.",
        labels=["device", "counter"],
    )
    for (device, counter), count in sorted(status.counter_resets.items()):
        resets.add_metric([device, counter], count)
    yield from (utilisation, memory, resets)
