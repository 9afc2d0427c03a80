"""NVML's calls for one GPU, each of which may be refused on its own.

Owns: which call gives which value, in base units. Never: opening NVML, keeping values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import pynvml

T = TypeVar("T")

THROTTLE_REASONS: Final[Mapping[str, int]] = {
    "idle": pynvml.nvmlClocksEventReasonGpuIdle,
    "power_cap": pynvml.nvmlClocksEventReasonSwPowerCap,
    "hw_slowdown": pynvml.nvmlClocksEventReasonHwSlowdown,
    "sw_thermal": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "hw_thermal": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    "hw_power_brake": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
    "sync_boost": pynvml.nvmlClocksEventReasonSyncBoost,
    "app_clocks": pynvml.nvmlClocksEventReasonApplicationsClocksSetting,
    "display": pynvml.nvmlClocksEventReasonDisplayClockSetting,
}
"""Word -> bit of NVML's mask of reasons why clocks are held down."""

_LOST: Final = frozenset(
    (
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_RESET_REQUIRED,
    )
)


class Calls:
    """Makes NVML calls, and keeps the reason of each that was refused."""

    def __init__(self) -> None:
        self.absent: dict[str, str] = {}
        self.lost = False
        """Whether the GPU or its driver went away under one of them."""

    def __call__(self, name: str, function: Callable[..., T], *arguments: Any) -> T | None:
        """What `function` answers; None where it is refused, with the reason under `name`."""
        try:
            return function(*arguments)
        except pynvml.NVMLError as error:
            self.absent[name] = str(error)
            self.lost = self.lost or error.value in _LOST
            return None


def moving_values(calls: Calls, handle: Any) -> dict[str, Any]:
    """Fields of a DeviceReading that change from one moment to the next."""
    rates = calls("utilisation", pynvml.nvmlDeviceGetUtilizationRates, handle)
    memory = calls("memory", pynvml.nvmlDeviceGetMemoryInfo, handle)
    power_mw = calls("power_w", pynvml.nvmlDeviceGetPowerUsage, handle)
    energy_mj = calls("energy_j", pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    sm_mhz = calls("sm_clock_hz", pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM)
    memory_mhz = calls("memory_clock_hz", pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM)
    reasons = calls("throttle_reasons", _throttle_mask, handle)
    return {
        "utilisation": None if rates is None else rates.gpu / 100,
        "memory_used_bytes": None if memory is None else int(memory.used),
        "memory_total_bytes": None if memory is None else int(memory.total),
        "power_w": None if power_mw is None else power_mw / 1e3,
        "energy_j": None if energy_mj is None else energy_mj / 1e3,
        "temperature_c": calls("temperature_c", _temperature, handle),
        "sm_clock_hz": None if sm_mhz is None else sm_mhz * 1e6,
        "memory_clock_hz": None if memory_mhz is None else memory_mhz * 1e6,
        "throttle_reasons": None
        if reasons is None
        else frozenset(word for word, bit in THROTTLE_REASONS.items() if reasons & bit),
    }


def lasting_values(calls: Calls, handle: Any) -> dict[str, Any]:
    """Fields of a DeviceReading that hardly ever change: asked for less often."""
    limit_mw = calls("power_limit_w", pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    mig = calls("mig", pynvml.nvmlDeviceGetMigMode, handle)
    mps = calls("mps", pynvml.nvmlDeviceGetMPSComputeRunningProcesses, handle)
    corrected, uncorrected = pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
    return {
        "name": calls("name", pynvml.nvmlDeviceGetName, handle),
        "power_limit_w": None if limit_mw is None else limit_mw / 1e3,
        "ecc_corrected": calls("ecc_corrected", _ecc_errors, handle, corrected),
        "ecc_uncorrected": calls("ecc_uncorrected", _ecc_errors, handle, uncorrected),
        "mig": None if mig is None else mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE,
        "mps": None if mps is None else bool(mps),
    }


def _temperature(handle: Any) -> float:
    """Degrees Celsius, by the newer call where the driver has it."""
    try:
        return float(pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU))
    except pynvml.NVMLError_FunctionNotFound:
        return float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))


def _throttle_mask(handle: Any) -> int:
    """NVML's bits, by the newer call where the driver has it."""
    try:
        return int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except pynvml.NVMLError_FunctionNotFound:
        return int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


def _ecc_errors(handle: Any, error_type: int) -> int:
    """Of the board's life: a driver that is loaded anew does not begin at 0."""
    return int(pynvml.nvmlDeviceGetTotalEccErrors(handle, error_type, pynvml.NVML_AGGREGATE_ECC))
