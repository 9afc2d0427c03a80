"""What readings add up to, until it is written into the ledger: held seconds, energy, CPU seconds, SM seconds.

Owns: the sums, their division by hours, what is left after a part was settled. Never: reading, clocks, the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from registry.entries import CpuSeconds, HeldSeconds, MemorySeconds, SmSeconds, period_of, periods

K = TypeVar("K")
Seconds = dict[tuple[int, str, str], float]
"""(hour, device, version) -> amount."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What was added up since it was last settled."""

    held: tuple[HeldSeconds, ...] = ()
    cpu: tuple[CpuSeconds, ...] = ()
    until: float | None = None
    """Unix time of the last reading in it: the position to resume from after a restart."""
    sm: tuple[SmSeconds, ...] = ()
    """Zeros too: the GPU said that a version's engines had nothing of it. No row: it does not say."""
    memory: tuple[MemorySeconds, ...] = ()


class Accumulator:
    """Adds up between two settlements. Not safe between threads."""

    def __init__(self, until: float | None = None) -> None:
        self.until = until
        self.cuts: tuple[int, ...] = ()
        """Whole Unix seconds at which an hour is divided besides: where a price changes."""
        self._held: dict[tuple[int, str], HeldSeconds] = {}
        self._cpu: Seconds = {}
        self._sm: Seconds = {}
        self._memory: Seconds = {}

    def add_held(self, device: str, start: float, stop: float, energy_j: float | None) -> None:
        """`device` was held from `start` to `stop` and took `energy_j`; None: nobody measured it."""
        for hour, seconds in periods(start, stop, self.cuts):
            old = self._held.get((hour, device), HeldSeconds(hour, device, 0.0))
            self._held[hour, device] = HeldSeconds(
                hour,
                device,
                old.held_s + seconds,
                old.energy_j + (energy_j or 0.0) * seconds / (stop - start),
                old.metered_s + (seconds if energy_j is not None else 0.0),
            )

    def add_cpu(self, device: str, version: str, start: float, stop: float, cpu_s: float) -> None:
        """CPU seconds that a version's engines took from `start` to `stop`."""
        if cpu_s > 0:
            self._spread(self._cpu, (device, version), (start, stop), cpu_s)

    def add_sm(self, device: str, version: str, start: float, stop: float, sm_s: float) -> None:
        """GPU-seconds that a version's kernels took from `start` to `stop`."""
        self._spread(self._sm, (device, version), (start, stop), sm_s)

    def add_memory(self, device: str, version: str, start: float, stop: float, held_bytes: int) -> None:
        """Memory that a version's engines held on a device from `start` to `stop`."""
        if stop > start and held_bytes > 0:
            self._spread(self._memory, (device, version), (start, stop), held_bytes * (stop - start))

    def peek(self) -> Sums:
        """What was added up and is not settled yet."""
        return Sums(
            held=tuple(self._held.values()),
            cpu=tuple(CpuSeconds(*key, seconds) for key, seconds in self._cpu.items()),
            until=self.until,
            sm=tuple(SmSeconds(*key, seconds) for key, seconds in self._sm.items()),
            memory=tuple(MemorySeconds(*key, byte_s) for key, byte_s in self._memory.items()),
        )

    def settled(self, sums: Sums) -> None:
        """`sums` is written: what came since stays."""
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
        _take_off(self._cpu, {(row.hour, row.device, row.version): row.cpu_s for row in sums.cpu})
        _take_off(self._sm, {(row.hour, row.device, row.version): row.sm_s for row in sums.sm})
        _take_off(self._memory, {(row.hour, row.device, row.version): row.byte_s for row in sums.memory})

    def _spread(self, sums: Seconds, whose: tuple[str, str], span: tuple[float, float], amount: float) -> None:
        """Evenly over the hours of a span; all of it to the hour of its end where that is no time at all."""
        start, stop = span
        parts = list(periods(start, stop, self.cuts)) or [(period_of(stop, self.cuts), 1.0)]
        whole = sum(seconds for _, seconds in parts)
        for hour, seconds in parts:
            sums[hour, *whose] = sums.get((hour, *whose), 0.0) + amount * seconds / whole


def _take_off(sums: dict[K, float], written: Mapping[K, float]) -> None:
    for key, amount in written.items():
        left = sums[key] - amount
        if left > 0:
            sums[key] = left
        else:
            del sums[key]
