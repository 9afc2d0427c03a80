"""Readings of the CPU through psutil: what a machine without a GPU is measured and billed by.

Owns: CPU and process readings. Never: keeping them, deciding what a process is (pids are arguments).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
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
        self._table = ProcessTable()

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
        processes = self._table.read(pids, at)
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
                processes=tuple(processes.values()),
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


class ProcessTable:
    """Processes with their descendants. The system's table is walked every `refresh_s`, as that costs most of a
    reading: a child that is found later brings its CPU seconds along, one that ended meanwhile left them to its parent.
    """

    def __init__(self, refresh_s: float = 5.0, root: Path = Path("/")) -> None:
        self._refresh_s = refresh_s
        self._root = root
        self._walked_at: float | None = None
        self._families: dict[int, list[psutil.Process]] = {}
        self._owners: dict[int, int] = {}
        self._strangers: frozenset[int] = frozenset()

    def read(self, pids: Iterable[int], at: float) -> dict[int, ProcessReading]:
        """pid -> CPU seconds and resident memory of it and its descendants; none where there is no such process."""
        wanted = set(pids)
        if not self._is_fresh(at) or wanted != self._families.keys():
            self._walk(wanted, at)
        found = {pid: _sum(pid, family) for pid, family in self._families.items()}
        return {pid: reading for pid, reading in found.items() if reading is not None}

    def owners(self, pids: Iterable[int], at: float) -> dict[int, int]:
        """Of `pids` those that are, or descend from, a process that was last asked for: pid -> that process."""
        asked = set(pids)
        unknown = asked - self._owners.keys() - self._strangers
        if unknown and self._walked_at != at:
            self._walk(set(self._families), at)
        self._strangers |= unknown - self._owners.keys()
        return {pid: self._owners[pid] for pid in asked & self._owners.keys()}

    def _is_fresh(self, at: float) -> bool:
        return self._walked_at is not None and 0 <= at - self._walked_at < self._refresh_s

    def _walk(self, pids: set[int], at: float) -> None:
        children: dict[int, list[int]] = {}
        for child, parent in _parents(self._root).items() if pids else ():
            children.setdefault(parent, []).append(child)
        self._families, self._owners, self._strangers = {}, {}, frozenset()
        for pid in pids:
            family = [pid]
            for member in family:  # grows as it is walked
                self._owners.setdefault(member, pid)
                family += children.get(member, ())
            self._families[pid] = [one for member in family if (one := _process(member)) is not None]
        self._walked_at = at


def _parents(root: Path) -> dict[int, int]:
    """pid -> parent of every process: by the system's own files, as psutil takes several times as long."""
    found: dict[int, int] = {}
    for stat in (root / "proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            # The name, in parentheses, may hold anything; the state and the parent follow it.
            found[int(stat.parent.name)] = int(stat.read_bytes().rpartition(b")")[2].split()[1])
    return found or {process.pid: process.info["ppid"] for process in psutil.process_iter(["ppid"])}


def _process(pid: int) -> psutil.Process | None:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid)
    return None


def _sum(pid: int, family: Sequence[psutil.Process]) -> ProcessReading | None:
    """Seconds of descendants that have ended are in their parent's reaped time, so the sum keeps growing as they end.
    None where `pid`, the first of the family, has ended."""
    started_at: float | None = None
    cpu_s, memory_bytes = 0.0, 0
    for member in family:
        try:
            with member.oneshot():
                times = member.cpu_times()
                memory_bytes += member.memory_info().rss
                if member.pid == pid:
                    started_at = member.create_time()
                    if not member.is_running():  # another one has its number now
                        return None
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if member.pid == pid:
                return None
            continue  # ended since the table was walked
        cpu_s += times.user + times.system
        cpu_s += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return None if started_at is None else ProcessReading(pid, started_at, memory_bytes, cpu_s=cpu_s)


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
