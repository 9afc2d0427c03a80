"""Readings of NVIDIA GPUs through NVML (`pynvml` of nvidia-ml-py).

Owns: NVML's calls and what each may answer. Never: keeping readings, CUDA.

Every call may be refused on its own (MIG, virtual GPUs, containers, old drivers, a GPU that fell off its bus): that
value is absent then, with NVML's own words, and the others stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import pynvml

from monitoring.cost import DeviceKind
from monitoring.cpu import CpuReader
from monitoring.devices import DeviceReading, DeviceUnavailableError, ProcessReading, Reader

T = TypeVar("T")
REOPEN_S: Final = 30.0
"""How long to wait before NVML is opened anew after a GPU was lost."""


class NvmlReader:
    """Readings of every GPU that NVML shows. Raises DeviceUnavailableError where NVML or a GPU is missing."""

    kind: DeviceKind = "gpu"

    def __init__(self) -> None:
        self._known: dict[int, tuple[str, str | None]] = {}
        self._last_seen_us: dict[int, int] = {}
        self._lost_at: float | None = None
        self._open()

    def read(self, at: float, pids: Iterable[int] = ()) -> list[DeviceReading]:
        """One reading per GPU, lost ones included (everything absent). `pids` are not needed: NVML lists processes."""
        if self._lost_at is not None and at - self._lost_at >= REOPEN_S:
            self.close()
            self._open()
            self._lost_at = None
        try:
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self._lost_at = self._lost_at if self._lost_at is not None else at - REOPEN_S
            raise DeviceUnavailableError(f"NVML does not answer: {error}") from None
        return [self._read_device(index, at) for index in range(max(count, len(self._known)))]

    def close(self) -> None:
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError_Uninitialized:
            return

    def _open(self) -> None:
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            raise DeviceUnavailableError(f"NVML is not usable: {error}") from None
        if count == 0:
            self.close()
            raise DeviceUnavailableError("NVML shows no GPU")

    def _read_device(self, index: int, at: float) -> DeviceReading:
        values = _Values()
        handle = values.call("device", pynvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            return self._lost_reading(index, at, values)
        uuid = values.call("uuid", pynvml.nvmlDeviceGetUUID, handle)
        name = values.call("name", pynvml.nvmlDeviceGetName, handle)
        if uuid is None and values.lost:
            return self._lost_reading(index, at, values)
        uuid = uuid or f"gpu-{index}"
        self._known[index] = (uuid, name)
        rates = values.call("utilisation", pynvml.nvmlDeviceGetUtilizationRates, handle)
        memory = values.call("memory", pynvml.nvmlDeviceGetMemoryInfo, handle)
        power_mw = values.call("power_w", pynvml.nvmlDeviceGetPowerUsage, handle)
        energy_mj = values.call("energy_j", pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        sm_mhz = values.call("sm_clock_hz", pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM)
        memory_mhz = values.call("memory_clock_hz", pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM)
        temperature = values.call("temperature_c", _temperature, handle)
        processes = values.call("processes", self._processes, index, handle, values)
        if values.lost:
            self._lost_at = self._lost_at if self._lost_at is not None else at
        return DeviceReading(
            kind="gpu",
            device=uuid,
            at=at,
            index=index,
            name=name,
            utilisation=None if rates is None else rates.gpu / 100,
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            power_w=None if power_mw is None else power_mw / 1e3,
            energy_j=None if energy_mj is None else energy_mj / 1e3,
            temperature_c=None if temperature is None else float(temperature),
            sm_clock_hz=None if sm_mhz is None else sm_mhz * 1e6,
            memory_clock_hz=None if memory_mhz is None else memory_mhz * 1e6,
            processes=processes,
            absent=values.absent,
        )

    def _lost_reading(self, index: int, at: float, values: _Values) -> DeviceReading:
        """A GPU that does not answer: everything absent, under the name that it was known by."""
        if self._lost_at is None:
            self._lost_at = at
        uuid, name = self._known.get(index, (f"gpu-{index}", None))
        return DeviceReading(kind="gpu", device=uuid, at=at, index=index, name=name, absent=values.absent)

    def _processes(self, index: int, handle: Any, values: _Values) -> tuple[ProcessReading, ...]:
        """Compute processes with their memory, and their share of SM time where the driver gives it."""
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        shares = values.call("process_utilisation", self._process_shares, index, handle) or {}
        memory = {process.pid: process.usedGpuMemory for process in running}
        return tuple(
            ProcessReading(pid, memory_bytes=memory[pid], utilisation=shares.get(pid)) for pid in sorted(memory)
        )

    def _process_shares(self, index: int, handle: Any) -> dict[int, float]:
        """pid -> mean SM utilisation of the driver's samples since the last reading."""
        try:
            samples = pynvml.nvmlDeviceGetProcessUtilization(handle, self._last_seen_us.get(index, 0))
        except pynvml.NVMLError as error:
            # No sample since then; pynvml raises its "success" too where the driver has none to give.
            if error.value in (pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_FOUND):
                return {}
            raise
        found: dict[int, list[int]] = {}
        for sample in samples:
            if sample.pid:
                found.setdefault(sample.pid, []).append(sample.smUtil)
                self._last_seen_us[index] = max(self._last_seen_us.get(index, 0), sample.timeStamp)
        return {pid: sum(shares) / len(shares) / 100 for pid, shares in found.items()}


def open_reader() -> tuple[Reader, str]:
    """A reader of this machine's GPUs, or of its CPU where there is none; and, then, why ("" for GPUs)."""
    try:
        return NvmlReader(), ""
    except DeviceUnavailableError as error:
        return CpuReader(), str(error)


class _Values:
    """Makes NVML calls, and keeps the reason of each that was refused."""

    def __init__(self) -> None:
        self.absent: dict[str, str] = {}
        self.lost = False

    def call(self, name: str, function: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return function(*arguments)
        except pynvml.NVMLError as error:
            self.absent[name] = str(error)
            self.lost = self.lost or error.value in (
                pynvml.NVML_ERROR_GPU_IS_LOST,
                pynvml.NVML_ERROR_UNINITIALIZED,
                pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
                pynvml.NVML_ERROR_RESET_REQUIRED,
            )
            return None


def _temperature(handle: Any) -> float:
    """Degrees Celsius, by the newer call where the driver has it."""
    try:
        return float(pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU))
    except pynvml.NVMLError_FunctionNotFound:
        return float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
