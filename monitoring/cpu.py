"""Readings of the CPU through psutil: what a machine without a GPU is measured and billed by.

Owns: CPU and process readings. Never: keeping them, deciding what a process is (pids are arguments).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil

from monitoring.cost import DeviceKind
from monitoring.devices import DeviceReading, ProcessReading

DEVICE = "cpu"


class CpuReader:
    """One reading for the whole CPU, with the processes asked for. `root` is the file system's, for tests."""

    kind: DeviceKind = "cpu"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._name = _cpu_name(root)
        self._times: tuple[float, float] | None = None

    def read(self, at: float, pids: Iterable[int] = ()) -> list[DeviceReading]:
        absent = {
            "power_w": "no meter is read on a CPU",
            "energy_j": "no meter is read on a CPU",
            "temperature_c": "not read on a CPU",
        }
        utilisation = self._utilisation()
        if utilisation is None:
            absent["utilisation"] = "known from the second reading on"
        if self._name is None:
            absent["name"] = "the system does not say"
        memory = psutil.virtual_memory()
        processes = [reading for pid in pids if (reading := read_process(pid)) is not None]
        return [
            DeviceReading(
                kind="cpu",
                device=DEVICE,
                at=at,
                name=self._name,
                cores=cores_held(self._root),
                utilisation=utilisation,
                memory_used_bytes=memory.total - memory.available,
                memory_total_bytes=memory.total,
                processes=tuple(processes),
                absent=absent,
            )
        ]

    def close(self) -> None:
        self._times = None

    def _utilisation(self) -> float | None:
        times = psutil.cpu_times()
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        idle = times.idle + getattr(times, "iowait", 0.0)
        before, self._times = self._times, (total, idle)
        if before is None or total <= before[0]:
            return None
        return min(1.0, max(0.0, 1 - (idle - before[1]) / (total - before[0])))


def read_process(pid: int) -> ProcessReading | None:
    """CPU seconds and resident memory of a process and its descendants; None where there is no such process.

    Seconds of descendants that have ended are in their parent's reaped time, so the sum keeps growing as they end.
    """
    try:
        process = psutil.Process(pid)
        started_at = process.create_time()
        family = [process, *process.children(recursive=True)]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    cpu_s, memory_bytes, seen = 0.0, 0, False
    for member in family:
        try:
            with member.oneshot():
                times = member.cpu_times()
                memory_bytes += member.memory_info().rss
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue  # ended between the listing and the reading
        seen = True
        cpu_s += times.user + times.system
        cpu_s += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return ProcessReading(pid, started_at, memory_bytes, None, cpu_s) if seen else None


def cores_held(root: Path = Path("/")) -> float:
    """Cores that this process may use: its affinity mask, cut by a control group's quota where one is set."""
    try:
        cores = float(len(psutil.Process().cpu_affinity() or ()))
    except (AttributeError, psutil.Error):
        cores = 0.0
    cores = cores or float(psutil.cpu_count() or 1)
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        return min(cores, int(quota) / int(period)) if quota != "max" else cores
    except (OSError, ValueError):
        return cores


def _cpu_name(root: Path) -> str | None:
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None)
