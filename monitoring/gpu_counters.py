"""Counters of a device that may begin anew: a driver that was loaded again, a counter that wraps.

Owns: the change of each counter since the reading before, and how often one went back. Never: guessing what happened
in between: time over which a counter began anew is not measured.
"""

from __future__ import annotations

from collections.abc import Mapping

from monitoring.devices import DeviceReading


class Counters:
    """The counters of every device, from reading to reading."""

    def __init__(self) -> None:
        self._resets: dict[tuple[str, str], int] = {}
        self._values: dict[tuple[str, str], float] = {}
        self._energy_at: dict[str, float] = {}
        self._power: dict[str, tuple[float, float]] = {}

    def resets(self) -> Mapping[tuple[str, str], int]:
        """(device, counter) -> how often it went back; 0 for every counter that was ever read."""
        return dict(self._resets)

    def energy_since(self, reading: DeviceReading, previous: float) -> float | None:
        """Joules from `previous`, the time of the reading before, to this one: by the device's counter, else by
        integrated power (trapezoids). None where the reading before had neither, or where the counter went back."""
        device, at = reading.device, reading.at
        for name in ("ecc_corrected", "ecc_uncorrected"):
            self._change(device, name, getattr(reading, name))
        power = self._power.pop(device, None)
        if reading.power_w is not None:
            self._power[device] = (at, reading.power_w)
        energy_at = self._energy_at.pop(device, None)
        if reading.energy_j is not None:
            self._energy_at[device] = at
            change = self._change(device, "energy", reading.energy_j)
            return change if energy_at == previous else None
        if reading.power_w is not None and power is not None and power[0] == previous:
            return (reading.power_w + power[1]) / 2 * (at - previous)
        return None

    def _change(self, device: str, counter: str, value: float | None) -> float | None:
        """The change since the value before; None where there is none before, or where it went back."""
        if value is None:
            return None
        key = (device, counter)
        before = self._values.get(key)
        self._values[key] = value
        self._resets.setdefault(key, 0)
        if before is None:
            return None
        if value < before:
            self._resets[key] += 1
            return None
        return value - before
