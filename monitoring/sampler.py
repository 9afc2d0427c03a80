"""Takes device readings at an interval, and adds up what the bill needs: held seconds, CPU and SM seconds, energy.

Owns: the sampling thread, the latest readings, whose process is whose. Never: the ledger itself, prices. Nothing it
meets stops it: a failed reading is counted, named and marked as a gap.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from monitoring.cpu import DEVICE as CPU_DEVICE
from monitoring.cpu import ProcessTable
from monitoring.devices import DeviceReading, DeviceUnavailableError, ProcessReading, Reader
from monitoring.gpu_counters import Counters
from monitoring.gpu_owners import (
    GpuUse,
    Shares,
    marked,
    memory_by_device,
    memory_by_engine,
    memory_by_version,
    use_by_version,
)
from monitoring.sampler_sums import Accumulator, Sums

__all__ = ["Sampler", "SamplerStatus", "Sums"]

GAP_FACTOR = 5.0
"""Two readings further apart than this many intervals, and than `GAP_MIN_S`, have a gap between them."""
GAP_MIN_S = 2.0
PROCESSES_S = 1.0
"""Processes are read from the system this often at most, whatever the rate of readings."""


class Processes(Protocol):
    """The system's processes (`monitoring.cpu.ProcessTable`)."""

    def read(self, pids: Iterable[int], at: float) -> dict[int, ProcessReading]: ...

    def owners(self, pids: Iterable[int], at: float) -> dict[int, int]: ...


@dataclass(frozen=True, slots=True)
class SamplerStatus:
    """How the sampler is doing, and what it found that is no reading of one device."""

    last_at: float | None = None
    """Unix time of the last reading in which a device answered; None before the first."""
    samples: int = 0
    failures: int = 0
    """Rounds of readings in which no device answered."""
    gaps: int = 0
    """Times that readings of a device lay too far apart, or that it was lost and came back."""
    gap_s: float = 0.0
    """Seconds between readings that lie too far apart, held or not."""
    own_cpu_s: float = 0.0
    """CPU seconds that taking readings has cost."""
    last_cost_s: float = 0.0
    """Wall seconds of the last reading."""
    last_error: str = ""
    """What failed last, however long ago."""
    failing: str = ""
    """What failed in the last round; "" where every device answered."""
    counter_resets: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(device, counter) -> how often the counter went back."""
    use: Mapping[tuple[str, str], GpuUse] = field(default_factory=dict)
    """(device, `model@version`) -> what the version's engines had of the GPU."""


class Sampler:
    """Samples `reader` every `interval_s` in a thread of its own; `sample_once` does it in the caller's.

    `engines` names what runs now: pid -> `model@version`; their children count as theirs. A device counts as held
    between two readings while an engine ran: across a gap only where one of them was there before it. `resume_at` (the
    `until` of the sums last written before a restart) lets held time go on across a restart of the control plane under
    engines that stayed.
    """

    def __init__(
        self,
        reader: Reader,
        engines: Callable[[], Mapping[int, str]],
        *,
        interval_s: float = 1.0,
        resume_at: float | None = None,
        clock: Callable[[], float] = time.time,
        processes: Processes | None = None,
    ) -> None:
        self._reader = reader
        self._engines = engines
        self._interval_s = interval_s
        self._clock = clock
        self._table = processes if processes is not None else ProcessTable()
        self._previous_at = resume_at
        self._processes_at = resume_at
        self._resumed = resume_at is not None
        self._running: dict[int, ProcessReading] = {}
        self._watched: set[int] = set()
        self._cpu: dict[tuple[int, float], float] = {}
        self._lost_since: dict[str, float] = {}
        self._counters = Counters()
        self._sums = Accumulator(resume_at)
        self._latest: tuple[DeviceReading, ...] = ()
        self._engine_memory: dict[str, int] = {}
        self._held_by: dict[int, dict[str, int]] = {}
        self._status = SamplerStatus()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin sampling in a daemon thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="modelyard-sampler", daemon=True)
            self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End sampling; returns once the thread has ended, or after `timeout_s`: a driver that hangs keeps its thread,
        and is not asked to close."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return
        self._reader.close()

    def watch(self, sample_hz: float) -> None:
        """Read GPUs so often from now on. A CPU is read once a second: its processes cost most, and change slowest."""
        self._interval_s = 1 / sample_hz if self._reader.kind == "gpu" else PROCESSES_S

    @property
    def cuts(self) -> tuple[int, ...]:
        """Whole Unix seconds at which a price changes: hours are divided there too. Set them before they come."""
        return self._sums.cuts

    @cuts.setter
    def cuts(self, cuts: tuple[int, ...]) -> None:
        with self._lock:
            self._sums.cuts = cuts

    @property
    def kind(self) -> str:
        """`gpu` or `cpu`."""
        return self._reader.kind

    def latest(self) -> tuple[DeviceReading, ...]:
        """The last reading of every device; empty before the first."""
        return self._latest

    def device_of(self, pid: int) -> str | None:
        """The GPU on which an engine (with its children) holds most memory; None where none says so."""
        held = self._held_by.get(pid, {})
        return max(held, key=lambda device: held[device], default=None)

    def engine_memory(self) -> dict[str, int]:
        """`model@version` -> bytes its engines held at the last reading: on the GPU where it says so, else resident."""
        return dict(self._engine_memory)

    def status(self) -> SamplerStatus:
        return self._status

    def peek(self) -> Sums:
        """What was added up and is not settled yet. Write it, then call `settled` with it: nothing is lost between."""
        with self._lock:
            return self._sums.peek()

    def settled(self, sums: Sums) -> None:
        """`sums` is written: what came since stays."""
        with self._lock:
            self._sums.settled(sums)

    def sample_once(self) -> None:
        """Take one reading of everything. Never raises; see `status`."""
        began, cpu_began = time.perf_counter(), time.thread_time()
        at = self._clock()
        answered = False
        try:
            self._sample(at)
            lost = [f"{one.device}: {one.absent['device']}" for one in self._latest if one.lost]
            answered, failing = len(lost) < len(self._latest) or not self._latest, "; ".join(lost)
        except DeviceUnavailableError as reason:
            failing = str(reason)
        except Exception as reason:  # the thread outlives every reading; what failed is told in `status`
            failing = f"{type(reason).__name__}: {reason}"
        status = self._status
        self._status = replace(
            status,
            last_at=at if answered else status.last_at,
            samples=status.samples + 1,
            failures=status.failures + (not answered),
            own_cpu_s=status.own_cpu_s + time.thread_time() - cpu_began,
            last_cost_s=time.perf_counter() - began,
            last_error=failing or status.last_error,
            failing=failing,
        )

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            self.sample_once()
            due = max(due + self._interval_s, time.monotonic())
            self._stop.wait(due - time.monotonic())

    def _sample(self, at: float) -> None:
        engines = dict(self._engines())
        readings = tuple(self._reader.read(at, engines))
        previous, resumed = self._previous_at, self._resumed
        elapsed = max(0.0, at - previous) if previous is not None else 0.0
        gap = elapsed > max(GAP_FACTOR * self._interval_s, GAP_MIN_S)
        processes_since = self._processes_at
        is_new = self._read_processes(engines, readings, at)
        bridged = any(previous is not None and (p.started_at or at) <= previous for p in self._running.values())
        held = bool(engines) and (bridged if gap or resumed else True)
        shared = {one.device: self._shares(one, engines, at) for one in readings if one.kind == "gpu"}
        readings = tuple(marked(one, shared.get(one.device), engines) for one in readings)
        memory = memory_by_device(engines, self._running, readings, shared)
        with self._lock:
            start = previous if previous is not None else at
            for reading in readings:
                energy_j = self._counters.energy_since(reading, start)
                if held:
                    self._sums.add_held(reading.device, start, at, energy_j)
                    for version, held_bytes in memory.get(reading.device, {}).items():
                        self._sums.add_memory(reading.device, version, start, at, held_bytes)
                for pid, process in (shared.get(reading.device) or {}).values():
                    if process.sm_s is not None:
                        self._sums.add_sm(reading.device, engines[pid], start, at, process.sm_s)
            if is_new:
                self._add_cpu(engines, _cpu_device(readings), processes_since, at)
            self._previous_at = self._sums.until = at
            self._resumed = False
            self._latest = readings
            resident = {} if any(reading.lost for reading in readings) else self._running
            self._engine_memory = memory_by_version(engines, resident, shared.values())
            self._held_by = memory_by_engine(shared)
        self._mark(readings, at, elapsed if gap else 0.0)
        self._status = replace(
            self._status, counter_resets=self._counters.resets(), use=use_by_version(engines, shared)
        )

    def _read_processes(self, engines: Mapping[int, str], readings: Sequence[DeviceReading], at: float) -> bool:
        """The engines' processes as the CPU sees them, where it is time to; a CPU's own reading has them already."""
        since = self._processes_at
        of_cpu = [reading for reading in readings if reading.kind == "cpu"]
        is_due = since is None or not 0 <= at - since < PROCESSES_S - self._interval_s / 2
        if of_cpu:
            self._running = {one.pid: one for reading in of_cpu for one in reading.processes or ()}
        elif is_due or engines.keys() != self._watched:
            self._running = self._table.read(engines, at)
        else:
            return False
        self._watched = set(engines)
        self._processes_at = at
        return True

    def _shares(self, reading: DeviceReading, engines: Mapping[int, str], at: float) -> Shares:
        """What the GPU says of the engines' processes and their children."""
        listed = {process.pid: process for process in reading.processes or ()}
        if not listed or not engines:
            return {}
        owners = self._table.owners(listed, at)
        return {pid: (owners[pid], one) for pid, one in listed.items() if owners.get(pid) in engines}

    def _mark(self, readings: Sequence[DeviceReading], at: float, gap_s: float) -> None:
        """Count gaps: of all readings, and of each device that was lost and is back."""
        gaps, seconds = int(gap_s > 0), gap_s
        for reading in readings:
            if reading.lost:
                self._lost_since.setdefault(reading.device, at)
            elif reading.device in self._lost_since:
                gaps += 1
                seconds += at - self._lost_since.pop(reading.device)
        if gaps:
            self._status = replace(self._status, gaps=self._status.gaps + gaps, gap_s=self._status.gap_s + seconds)

    def _add_cpu(self, engines: Mapping[int, str], device: str, previous: float | None, at: float) -> None:
        """CPU seconds since processes were last read. A process seen for the first time counts from its start where it
        started after that; one that is older (adopted after a restart) counts from now."""
        seen: dict[tuple[int, float], float] = {}
        for pid, process in self._running.items():
            if process.cpu_s is None or process.started_at is None:
                continue
            key = (pid, process.started_at)
            seen[key] = process.cpu_s
            is_new = previous is not None and process.started_at >= previous - max(self._interval_s, PROCESSES_S)
            before = self._cpu.get(key, 0.0 if is_new else process.cpu_s)
            start = max(previous if previous is not None else at, process.started_at)
            self._sums.add_cpu(device, engines[pid], start, at, max(0.0, process.cpu_s - before))
        self._cpu = seen


def _cpu_device(readings: Sequence[DeviceReading]) -> str:
    return next((reading.device for reading in readings if reading.kind == "cpu"), CPU_DEVICE)
