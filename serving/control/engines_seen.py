"""What the books know of engines: whose processes they are, which device they hold, what their tokens are priced at.

Owns: that knowledge, as of the last look; of an engine that is gone it stays known which device it held, for its
requests are counted later. Never: looking at a process or a device itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from monitoring.cost import TokenPrice
from serving.control.snapshot import RegistrySnapshot
from serving.engines.replica import ReplicaStatus


class EnginesSeen:
    """One yard's engines. Threads read what the yard's loop notes: each view is replaced, none is changed under them.

    `device` is where an engine's time counts whose device was never seen.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._devices: dict[str, str] = {}
        self._external: frozenset[str] = frozenset()
        self.pids: Mapping[int, str] = {}
        """Process -> `model@version`."""
        self.token_prices: Mapping[str, TokenPrice] = {}
        """`model@version` -> what its provider asks, where one does."""

    def note_registered(self, known: RegistrySnapshot) -> None:
        """Which versions' engines somebody else runs."""
        self._external = frozenset(
            str(version.ref)
            for model in known.values()
            for version in model.versions.values()
            if version.manifest.engine in ("external", "hosted")
        )

    def note_running(self, replicas: Sequence[ReplicaStatus], device_of_pid: Callable[[int], str | None]) -> None:
        """Which engines run now; `device_of_pid` says which device a process was seen on."""
        self.pids = {one.pid: f"{one.model}@{one.label}" for one in replicas if one.pid}
        for one in replicas:
            if one.pid and (device := device_of_pid(one.pid)):
                self._devices[one.id] = device
        self.token_prices = {
            f"{one.model}@{one.label}": TokenPrice(seen.input_price_per_million, seen.output_price_per_million)
            for one in replicas
            if (seen := one.capabilities) and (seen.input_price_per_million or seen.output_price_per_million)
        }

    def device_of(self, replica: str) -> str | None:
        """The device whose time a replica's requests took; None for an engine that somebody else runs."""
        if replica.rpartition("/")[0] in self._external:
            return None
        return self._devices.get(replica, self._device)
