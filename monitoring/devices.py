"""What a device reports: one reading type for GPUs and for the CPU that stands in for them.

Owns: the shape of readings. Never: taking them (`gpu`, `cpu`), keeping them (`sampler`).

Any value may be absent: it is None then, and `absent` holds the reason under the field's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from monitoring.cost import DeviceKind


class DeviceUnavailableError(Exception):
    """There is no device of the kind here, or its driver does not answer; says why."""


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """One process on a device. With the CPU: of the process and its descendants."""

    pid: int
    started_at: float | None = None
    """Unix time; tells two processes with one pid apart. None where the device does not know it."""
    memory_bytes: int | None = None
    """Device memory on a GPU, resident memory on a CPU."""
    utilisation: float | None = None
    """Share of the device's compute time since the last reading, 0 to 1."""
    sm_s: float | None = None
    """Seconds of the whole GPU that its kernels took since the last reading; None where the driver does not say."""
    cpu_s: float | None = None
    """CPU seconds since the process started."""


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One device at one moment."""

    kind: DeviceKind
    device: str
    """The GPU's UUID, or `cpu`."""
    at: float
    """Unix time."""
    index: int = 0
    name: str | None = None
    cores: float | None = None
    """Cores that this process may use, on a CPU."""
    utilisation: float | None = None
    """0 to 1, since the last reading."""
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None
    energy_j: float | None = None
    """A counter since the driver was loaded."""
    temperature_c: float | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    power_limit_w: float | None = None
    """What the driver lets it draw now."""
    throttle_reasons: frozenset[str] | None = None
    """Why the clocks are lower than they could be: words of `monitoring.gpu_values.THROTTLE_REASONS`."""
    ecc_corrected: int | None = None
    """Memory errors of the board's life."""
    ecc_uncorrected: int | None = None
    xid_errors: Mapping[int, int] | None = None
    """XID -> how often the driver reported it since this process began to watch."""
    mig: bool | None = None
    """Whether the GPU is divided into instances (MIG)."""
    mps: bool | None = None
    """Whether processes share it through NVIDIA's Multi-Process Service now."""
    processes: tuple[ProcessReading, ...] | None = None
    absent: Mapping[str, str] = field(default_factory=dict)
    """Field -> why it could not be read; `device`: nothing of it could be."""

    @property
    def lost(self) -> bool:
        """Whether the device, or its driver, did not answer at all."""
        return "device" in self.absent


class Reader(Protocol):
    """Takes readings of every device of one kind."""

    kind: DeviceKind

    def read(self, at: float, pids: Iterable[int] = ()) -> Sequence[DeviceReading]:
        """One reading per device; `pids` are processes of interest where the device does not list its own. Raises
        DeviceUnavailableError where no device answers at all."""

    def close(self) -> None:
        """Give the driver back."""
