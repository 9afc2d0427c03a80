"""XID errors: what the driver reports by itself when a GPU, or a program on it, goes wrong.

Owns: NVML's event set and the counts. Never: waiting (it asks with a timeout of zero), saying what an XID means.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any, Final

import pynvml

EVENTS_MAX: Final = 100
"""At one reading; what is left comes with the next."""


class XidEvents:
    """Counts XIDs per GPU. The counts outlive NVML's own session; `close` before NVML is shut."""

    def __init__(self) -> None:
        self._set: Any = None
        self._refused: dict[str, str] = {}
        self._devices: dict[int, str] = {}
        self._counts: dict[str, dict[int, int]] = {}

    def watch(self, device: str, handle: Any) -> str:
        """Have events of `device` counted from now on; "" or why they cannot be. Asks the driver once a session."""
        if device in self._refused:
            return self._refused[device]
        if self._devices.get(_address(handle)) == device:
            return ""
        try:
            if self._set is None:
                self._set = pynvml.nvmlEventSetCreate()
            pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, self._set)
        except pynvml.NVMLError as error:
            self._refused[device] = str(error)
            return str(error)
        self._devices[_address(handle)] = device
        self._counts.setdefault(device, {})
        return ""

    def collect(self) -> None:
        """Count what came since the last call. A driver that went away has none to give: the readings say so."""
        for _ in range(EVENTS_MAX if self._set is not None else 0):
            try:
                event = pynvml.nvmlEventSetWait_v2(self._set, 0)
            except pynvml.NVMLError:
                return  # a timeout (nothing more) or the end of the session
            device = self._devices.get(_address(event.device))
            if device is not None and event.eventType == pynvml.nvmlEventTypeXidCriticalError:
                counts = self._counts[device]
                counts[event.eventData] = counts.get(event.eventData, 0) + 1

    def counts(self, device: str) -> dict[int, int] | None:
        """XID -> how often; None where `device` was never watched."""
        counts = self._counts.get(device)
        return None if counts is None else dict(counts)

    def close(self) -> None:
        """Give the event set back; `watch` makes a new one."""
        if self._set is not None:
            with contextlib.suppress(pynvml.NVMLError):  # a driver that went away took it along
                pynvml.nvmlEventSetFree(self._set)
        self._set = None
        self._refused.clear()
        self._devices.clear()


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
