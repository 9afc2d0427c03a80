"""What the registry says of every model at one moment, as one immutable value.

Owns: its shape and reading it from a registry. Never: deciding anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from registry.models import Pause, Route, Version
from registry.store import Registry


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    """One model as it is registered."""

    name: str
    versions: Mapping[str, Version] = field(default_factory=dict)
    """Label -> version, retired ones included, in the order of registration."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    route: Route | None = None
    pause: Pause | None = None
    """Where the route is held."""

    @property
    def created_at(self) -> float:
        """Unix seconds at which its first version was registered; 0 where it has none."""
        return min((version.created_at for version in self.versions.values()), default=0.0)

    def traffic_of(self, label: str) -> list[str]:
        """Why the version cannot go: its basis points, its place as a fallback, the aliases that name it."""
        reasons: list[str] = []
        if self.route is not None:
            if self.route.weights.get(label, 0) > 0:
                reasons.append(f"it has {self.route.weights[label]} basis points of the traffic")
            if label in self.route.fallback:
                reasons.append("it is a fallback")
        reasons += [f"the alias {name} names it" for name, target in self.aliases.items() if target == label]
        return reasons


REREAD_S = 10.0
RegistrySnapshot = Mapping[str, ModelSnapshot]


def take(registry: Registry) -> dict[str, ModelSnapshot]:
    """Read every model. Blocking: call it in a thread."""
    versions: dict[str, dict[str, Version]] = {name: {} for name in registry.models()}
    for version in registry.versions():
        versions.setdefault(version.model, {})[version.label] = version
    aliases: dict[str, dict[str, str]] = {}
    for alias in registry.aliases():
        aliases.setdefault(alias.model, {})[alias.name] = alias.label
    routes, pauses = registry.routes(), registry.pauses()
    return {
        name: ModelSnapshot(name, labels, aliases.get(name, {}), routes.get(name), pauses.get(name))
        for name, labels in versions.items()
    }


class Follower:
    """The same, read anew where the registry was changed since, and now and then: another process may change it too."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._seen = -1
        self._read_at = 0.0
        self.current: RegistrySnapshot = {}

    async def follow(self) -> bool:
        """Bring `current` up to date. Returns whether it was read."""
        seen, now = self._registry.changes, time.monotonic()
        if seen == self._seen and now - self._read_at < REREAD_S:
            return False
        self.current = await asyncio.to_thread(take, self._registry)
        self._seen, self._read_at = seen, now  # of before: what changed while it was read is read again
        return True
