"""Takes device readings at an interval, and adds up what the bill needs: held seconds, CPU seconds, energy.

Owns: the sampling thread, the latest readings, and the sums that wait to be written into the ledger. Never: the ledger
itself, prices. Nothing it meets stops it: a failed reading is counted, named and marked as a gap.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from monitoring.cpu import read_process
from monitoring.devices import DeviceReading, DeviceUnavailableError, ProcessReading, Reader
from registry.entries import HOUR_S, CpuSeconds, HeldSeconds

GAP_FACTOR = 5.0
"""Two readings further apart than this many intervals have a gap between them."""

CPU_METHOD_DEVICE = "cpu"


@dataclass(frozen=True, slots=True)
class Sums:
    """What was added up since it was last settled."""

    held: tuple[HeldSeconds, ...] = ()
    cpu: tuple[CpuSeconds, ...] = ()
    until: float | None = None
    """Unix time of the last reading in it: the position to resume from after a restart."""


@dataclass(frozen=True, slots=True)
class SamplerStatus:
    """How the sampler is doing."""

    last_at: float | None = None
    """Unix time of the last reading; None before the first."""
    samples: int = 0
    failures: int = 0
    gaps: int = 0
    gap_s: float = 0.0
    """Seconds between readings that lie too far apart, held or not."""
    own_cpu_s: float = 0.0
    """CPU seconds that taking readings has cost."""
    last_cost_s: float = 0.0
    """Wall seconds of the last reading."""
    last_error: str = ""


class Sampler:
    """Samples `reader` every `interval_s` in a thread of its own; `sample_once` does it in the caller's.

    `engines` names what runs now: pid -> `model@version`. A device counts as held between two readings while an engine
    ran: across a gap only where one of them was there before it. `resume_at` (the `until` of the sums last written
    before a restart) lets held time go on across a restart of the control plane under engines that stayed.
    """

    def __init__(
        self,
        reader: Reader,
        engines: Callable[[], Mapping[int, str]],
        *,
        interval_s: float = 1.0,
        resume_at: float | None = None,
        clock: Callable[[], float] = time.time,
        read_process: Callable[[int], ProcessReading | None] = read_process,
    ) -> None:
        self._reader = reader
        self._engines = engines
        self._interval_s = interval_s
        self._clock = clock
        self._read_process = read_process
        self._previous_at = resume_at
        self._resumed = resume_at is not None
        self._energy: dict[str, tuple[float, float]] = {}
        self._power: dict[str, float] = {}
        self._cpu: dict[tuple[int, float], float] = {}
        self._held: dict[tuple[int, str], HeldSeconds] = {}
        self._cpu_sums: defaultdict[tuple[int, str], float] = defaultdict(float)
        self._until = resume_at
        self._latest: tuple[DeviceReading, ...] = ()
        self._engine_memory: dict[str, int] = {}
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
        """End sampling; returns once the thread has ended, or after `timeout_s`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        self._reader.close()

    @property
    def kind(self) -> str:
        """`gpu` or `cpu`."""
        return self._reader.kind

    def latest(self) -> tuple[DeviceReading, ...]:
        """The last reading of every device; empty before the first."""
        return self._latest

    def engine_memory(self) -> dict[str, int]:
        """`model@version` -> bytes its engines held at the last reading: on the GPU where it says so, else resident."""
        return dict(self._engine_memory)

    def status(self) -> SamplerStatus:
        return self._status

    def peek(self) -> Sums:
        """What was added up and is not settled yet. Write it, then call `settled` with it: nothing is lost between."""
        with self._lock:
            device = self._latest[0].device if self._reader.kind == "cpu" and self._latest else CPU_METHOD_DEVICE
            cpu = (CpuSeconds(hour, device, version, cpu_s) for (hour, version), cpu_s in self._cpu_sums.items())
            return Sums(tuple(self._held.values()), tuple(cpu), self._until)

    def settled(self, sums: Sums) -> None:
        """`sums` is written: what came since stays."""
        with self._lock:
            for row in sums.held:
                now = self._held[row.hour, row.device]
                rest = HeldSeconds(
                    row.hour,
                    row.device,
                    max(0.0, now.held_s - row.held_s),
                    max(0.0, now.energy_j - row.energy_j),
                    max(0.0, now.metered_s - row.metered_s),
                )
                if rest.held_s > 0 or rest.energy_j > 0:
                    self._held[row.hour, row.device] = rest
                else:
                    del self._held[row.hour, row.device]
            for cpu in sums.cpu:
                left = self._cpu_sums[cpu.hour, cpu.version] - cpu.cpu_s
                if left > 0:
                    self._cpu_sums[cpu.hour, cpu.version] = left
                else:
                    del self._cpu_sums[cpu.hour, cpu.version]

    def sample_once(self) -> None:
        """Take one reading of everything. Never raises; see `status`."""
        began, cpu_began = time.perf_counter(), time.thread_time()
        error = ""
        at = self._clock()
        try:
            self._sample(at)
        except DeviceUnavailableError as reason:
            error = str(reason)
        except Exception as reason:  # the thread outlives every reading; what failed is told in `status`
            error = f"{type(reason).__name__}: {reason}"
        status = self._status
        self._status = replace(
            status,
            last_at=status.last_at if error else at,
            samples=status.samples + 1,
            failures=status.failures + bool(error),
            own_cpu_s=status.own_cpu_s + time.thread_time() - cpu_began,
            last_cost_s=time.perf_counter() - began,
            last_error=error or status.last_error,
        )

    def _run(self) -> None:
        while not self._stop.is_set():
            self.sample_once()
            self._stop.wait(self._interval_s)

    def _sample(self, at: float) -> None:
        engines = dict(self._engines())
        readings = tuple(self._reader.read(at, engines))
        processes = self._processes(engines, readings)
        previous, resumed = self._previous_at, self._resumed
        elapsed = max(0.0, at - previous) if previous is not None else 0.0
        gap = elapsed > GAP_FACTOR * self._interval_s
        bridged = any(previous is not None and (p.started_at or at) <= previous for p in processes.values())
        held = bool(engines) and (bridged if gap or resumed else True)
        with self._lock:
            for reading in readings:
                self._add_device(reading, previous if previous is not None else at, at, held=held)
            self._add_cpu(engines, processes, previous, at)
            self._previous_at = self._until = at
            self._resumed = False
            self._latest = readings
            self._engine_memory = _memory_by_version(engines, processes, readings)
        if gap:
            self._status = replace(self._status, gaps=self._status.gaps + 1, gap_s=self._status.gap_s + elapsed)

    def _processes(self, engines: Mapping[int, str], readings: Sequence[DeviceReading]) -> dict[int, ProcessReading]:
        """The engines' processes as the CPU sees them; a CPU's own reading has them already."""
        found = {one.pid: one for device in readings if device.kind == "cpu" for one in device.processes or ()}
        for pid in engines.keys() - found.keys():
            process = self._read_process(pid)
            if process is not None:
                found[pid] = process
        return found

    def _add_device(self, reading: DeviceReading, previous: float, at: float, *, held: bool) -> None:
        energy_j = self._energy_since(reading, previous, at)
        if not held:
            return
        for hour, seconds in split_hours(previous, at):
            part = seconds / (at - previous)
            old = self._held.get((hour, reading.device), HeldSeconds(hour, reading.device, 0.0))
            self._held[hour, reading.device] = HeldSeconds(
                hour,
                reading.device,
                old.held_s + seconds,
                old.energy_j + (energy_j or 0.0) * part,
                old.metered_s + (seconds if energy_j is not None else 0.0),
            )

    def _energy_since(self, reading: DeviceReading, previous: float, at: float) -> float | None:
        """Joules since the device's last reading: by its counter, else by integrated power (trapezoids); None where
        there is neither, or no reading before."""
        device, before = reading.device, self._energy.get(reading.device)
        power_before = self._power.pop(device, None)
        if reading.power_w is not None:
            self._power[device] = reading.power_w
        if reading.energy_j is not None:
            self._energy[device] = (at, reading.energy_j)
            if before is not None and reading.energy_j >= before[1]:
                return reading.energy_j - before[1]
            return None
        if reading.power_w is not None and power_before is not None:
            return (reading.power_w + power_before) / 2 * (at - previous)
        return None

    def _add_cpu(
        self,
        engines: Mapping[int, str],
        processes: Mapping[int, ProcessReading],
        previous: float | None,
        at: float,
    ) -> None:
        """CPU seconds since the last reading. A process seen for the first time counts from its start where it started
        after the reading before; one that is older (adopted after a restart) counts from now."""
        seen: dict[tuple[int, float], float] = {}
        for pid, process in processes.items():
            if process.cpu_s is None or process.started_at is None:
                continue
            key = (pid, process.started_at)
            seen[key] = process.cpu_s
            is_new = previous is not None and process.started_at >= previous - self._interval_s
            before = self._cpu.get(key, 0.0 if is_new else process.cpu_s)
            delta = max(0.0, process.cpu_s - before)
            start = max(previous if previous is not None else at, process.started_at)
            if delta > 0:
                spans = list(split_hours(start, at)) or [(int(at // HOUR_S) * HOUR_S, 1.0)]
                whole = sum(seconds for _, seconds in spans)
                for hour, seconds in spans:
                    self._cpu_sums[hour, engines[pid]] += delta * seconds / whole
        self._cpu = seen


def split_hours(start: float, stop: float) -> Iterator[tuple[int, float]]:
    """(hour, seconds) of [start, stop), an hour named by the Unix second at which it starts."""
    hour = int(start // HOUR_S) * HOUR_S
    while hour < stop:
        seconds = min(stop, hour + HOUR_S) - max(start, hour)
        if seconds > 0:
            yield hour, seconds
        hour += HOUR_S


def _memory_by_version(
    engines: Mapping[int, str], processes: Mapping[int, ProcessReading], readings: Sequence[DeviceReading]
) -> dict[str, int]:
    """Device memory of the engines' own processes where a GPU lists them, else resident memory, per version."""
    on_gpu = _gpu_memory(readings)
    found: dict[str, int] = {}
    for pid, version in engines.items():
        process = processes.get(pid)
        memory = on_gpu.get(pid, process.memory_bytes if process else None)
        if memory is not None:
            found[version] = found.get(version, 0) + memory
    return found


def _gpu_memory(readings: Iterable[DeviceReading]) -> dict[int, int]:
    found: dict[int, int] = {}
    for reading in readings:
        for process in reading.processes or () if reading.kind == "gpu" else ():
            if process.memory_bytes is not None:
                found[process.pid] = found.get(process.pid, 0) + process.memory_bytes
    return found
