"""Which of a GPU's processes are whose: what versions hold and use, from readings.

Owns: the sums per device and version. Never: asking the driver or the system.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from monitoring.devices import DeviceReading, ProcessReading

Number = TypeVar("Number", int, float)
Shares = Mapping[int, tuple[int, ProcessReading]]
"""pid on the GPU -> (the pid of the engine that it is or descends from, what the GPU says of it)."""

NO_OWNER: Final = (
    "none of the processes that the driver lists is an engine of ours or its child: others use the GPU, or the driver "
    "gives the host's process numbers and this is a container (run it with the host's pid namespace)"
)


@dataclass(frozen=True, slots=True)
class GpuUse:
    """What a version's engines had of one GPU at the last reading; None: the driver does not say."""

    utilisation: float | None = None
    memory_bytes: int | None = None


def marked(reading: DeviceReading, shares: Shares | None, engines: Mapping[int, str]) -> DeviceReading:
    """`reading`, saying so where the GPU lists processes and not one of them is ours."""
    if reading.processes and engines and shares is not None and not shares:
        return replace(reading, absent={**reading.absent, "process_owner": NO_OWNER})
    return reading


def memory_by_version(
    engines: Mapping[int, str], processes: Mapping[int, ProcessReading], on_gpus: Iterable[Shares]
) -> dict[str, int]:
    """Device memory of the engines' processes where a GPU lists them, else resident memory, per version."""
    held: dict[int, int] = {}
    for shares in on_gpus:
        for owner, process in shares.values():
            if process.memory_bytes is not None:
                held[owner] = held.get(owner, 0) + process.memory_bytes
    found: dict[str, int] = {}
    for pid, version in engines.items():
        resident = processes.get(pid)
        memory = held.get(pid, resident.memory_bytes if resident else None)
        if memory is not None:
            found[version] = found.get(version, 0) + memory
    return found


def memory_by_device(
    engines: Mapping[int, str],
    processes: Mapping[int, ProcessReading],
    readings: Sequence[DeviceReading],
    on_gpus: Mapping[str, Shares],
) -> dict[str, dict[str, int]]:
    """device -> version -> bytes held there. Where no GPU lists an engine of ours, resident memory stands in on all;
    not while one is lost, as both must not be mixed."""
    found = {device: memory_by_version(engines, {}, [shares]) for device, shares in on_gpus.items()}
    if any(found.values()) or any(reading.lost for reading in readings):
        return found
    resident = memory_by_version(engines, processes, ())
    return {reading.device: resident for reading in readings}


def memory_by_engine(on_gpus: Mapping[str, Shares]) -> dict[int, dict[str, int]]:
    """pid of an engine -> GPU -> bytes that it and its children hold there."""
    found: dict[int, dict[str, int]] = {}
    for device, shares in on_gpus.items():
        for owner, process in shares.values():
            held = found.setdefault(owner, {})
            held[device] = held.get(device, 0) + (process.memory_bytes or 0)
    return found


def use_by_version(engines: Mapping[int, str], on_gpus: Mapping[str, Shares]) -> dict[tuple[str, str], GpuUse]:
    found: dict[tuple[str, str], GpuUse] = {}
    for device, shares in on_gpus.items():
        for owner, process in shares.values():
            before = found.get((device, engines[owner]), GpuUse())
            found[device, engines[owner]] = GpuUse(
                _plus(before.utilisation, process.utilisation), _plus(before.memory_bytes, process.memory_bytes)
            )
    return found


def _plus(one: Number | None, other: Number | None) -> Number | None:
    """The sum of what is known."""
    if one is None or other is None:
        return other if one is None else one
    return one + other
