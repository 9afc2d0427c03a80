"""Readings of NVIDIA GPUs through NVML (`pynvml` of nvidia-ml-py).

Owns: NVML's session (opened, lost, opened anew), which GPUs there are. Never: keeping readings, CUDA.

Every call may be refused on its own (MIG, virtual GPUs, containers, old drivers, a GPU that fell off its bus): that
value is absent then, with NVML's own words, and the others stand. A GPU that was seen once has a reading for ever:
lost (everything absent) while it, or the driver, does not answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import pynvml

from monitoring.cost import DeviceKind
from monitoring.cpu import CpuReader
from monitoring.devices import DeviceReading, DeviceUnavailableError, ProcessReading, Reader
from monitoring.gpu_events import XidEvents
from monitoring.gpu_processes import Sample, SmMeter, SmUse
from monitoring.gpu_values import Calls, lasting_values, moving_values

REOPEN_FIRST_S: Final = 1.0
REOPEN_MAX_S: Final = 60.0
"""How long to wait before NVML is opened anew after a GPU was lost: twice as long after each try."""
LASTING_S: Final = 1.0
"""Values that hardly ever change are asked for this often, whatever the rate of readings."""


@dataclass(slots=True)
class _Known:
    """A GPU that was seen."""

    index: int
    sm: SmMeter = field(default_factory=SmMeter)
    lasting: dict[str, Any] = field(default_factory=dict)
    lasting_absent: dict[str, str] = field(default_factory=dict)
    lasting_at: float | None = None


class NvmlReader:
    """Readings of every GPU that NVML shows. Raises DeviceUnavailableError where NVML or a GPU is missing."""

    kind: DeviceKind = "gpu"

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._xids = XidEvents()
        self._reopen_at: float | None = None
        self._wait_s = REOPEN_FIRST_S
        self._closed = ""
        self._open()

    def read(self, at: float, pids: Iterable[int] = ()) -> list[DeviceReading]:
        """One reading per GPU, lost ones included. `pids` are not needed: NVML lists processes. Raises
        DeviceUnavailableError where the driver went away before any GPU was seen."""
        if self._reopen_at is not None and at >= self._reopen_at:
            self._closed = self._reopen(at)
        count, why = 0, self._closed
        try:
            count = 0 if why else pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            why = f"NVML does not answer: {error}"
        if why and not self._known:
            self._in_trouble(at)
            raise DeviceUnavailableError(why)
        self._xids.collect()
        readings = [self._read_device(index, at) for index in range(count)]
        answered = {reading.device for reading in readings}
        for device, known in self._known.items():
            if device not in answered:
                readings.append(_lost(device, known, at, why or "the driver does not list it any more"))
        if any(reading.lost for reading in readings):
            self._in_trouble(at)
        else:
            self._reopen_at, self._wait_s = None, REOPEN_FIRST_S
        return sorted(readings, key=lambda reading: reading.index)

    def close(self) -> None:
        self._xids.close()
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            return  # it was shut already, or the driver is gone

    def _open(self) -> None:
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            raise DeviceUnavailableError(f"NVML is not usable: {error}") from None
        if count == 0:
            self.close()
            raise DeviceUnavailableError("NVML shows no GPU")

    def _reopen(self, at: float) -> str:
        """Open NVML anew; "" or why that is not possible now. What was measured from reading to reading begins anew."""
        self._wait_s = min(2 * self._wait_s, REOPEN_MAX_S)
        self._reopen_at = at + self._wait_s
        self.close()
        for known in self._known.values():
            known.sm, known.lasting_at = SmMeter(), None
        try:
            self._open()
        except DeviceUnavailableError as error:
            return str(error)
        return ""

    def _in_trouble(self, at: float) -> None:
        if self._reopen_at is None:
            self._reopen_at = at + self._wait_s

    def _read_device(self, index: int, at: float) -> DeviceReading:
        calls = Calls()
        handle = calls("device", pynvml.nvmlDeviceGetHandleByIndex, index)
        device = None if handle is None else calls("uuid", pynvml.nvmlDeviceGetUUID, handle)
        if handle is None or (device is None and calls.lost):
            return self._lost_at_index(index, at, calls)
        device = device or f"gpu-{index}"
        known = self._known.setdefault(device, _Known(index))
        known.index = index
        values = moving_values(calls, handle)
        processes = calls("processes", self._processes, known, handle, calls, at)
        if calls.lost:
            return _lost(device, known, at, next(iter(calls.absent.values())))
        if known.lasting_at is None or not 0 <= at - known.lasting_at < LASTING_S:
            lasting = Calls()
            known.lasting, known.lasting_at = lasting_values(lasting, handle), at
            known.lasting_absent = lasting.absent
        unwatched = self._xids.watch(device, handle)
        absent = calls.absent | known.lasting_absent | ({"xid_errors": unwatched} if unwatched else {})
        return DeviceReading(
            kind="gpu",
            device=device,
            at=at,
            index=index,
            processes=processes,
            xid_errors=self._xids.counts(device),
            absent=absent,
            **values,
            **known.lasting,
        )

    def _lost_at_index(self, index: int, at: float, calls: Calls) -> DeviceReading:
        """A GPU that does not answer, under the name that it was known by."""
        why = next(iter(calls.absent.values()))
        for device, known in self._known.items():
            if known.index == index:
                return _lost(device, known, at, why)
        return _lost(f"gpu-{index}", _Known(index), at, why)

    def _processes(self, known: _Known, handle: Any, calls: Calls, at: float) -> tuple[ProcessReading, ...]:
        """Compute processes with their memory, and what they had of the SMs where the driver says it."""
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        memory = {process.pid: process.usedGpuMemory for process in running}
        use = calls("process_utilisation", _sm_use, known.sm, handle, at, memory)
        if use is None:
            return tuple(ProcessReading(pid, memory_bytes=memory[pid]) for pid in sorted(memory))
        return tuple(
            ProcessReading(pid, memory_bytes=memory.get(pid), utilisation=use[pid].share, sm_s=use[pid].sm_s)
            for pid in sorted(use)
        )


def open_reader() -> tuple[Reader, str]:
    """A reader of this machine's GPUs, or of its CPU where there is none; and, then, why ("" for GPUs)."""
    try:
        return NvmlReader(), ""
    except DeviceUnavailableError as error:
        return CpuReader(), str(error)


def _lost(device: str, known: _Known, at: float, why: str) -> DeviceReading:
    """Everything absent: the last values are not shown as if they were true still."""
    name = known.lasting.get("name")
    known.sm, known.lasting_at = SmMeter(), None
    return DeviceReading(kind="gpu", device=device, at=at, index=known.index, name=name, absent={"device": why})


def _sm_use(meter: SmMeter, handle: Any, at: float, running: Iterable[int]) -> dict[int, SmUse]:
    try:
        samples = pynvml.nvmlDeviceGetProcessUtilization(handle, meter.ask_after())
    except pynvml.NVMLError as error:
        # No sample since then; pynvml raises its "success" too where the driver has none to give.
        if error.value not in (pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_FOUND):
            raise
        samples = []
    return meter.take((Sample(one.pid, one.timeStamp, one.smUtil) for one in samples), at, running)
