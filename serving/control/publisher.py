"""Publishes a table whenever what is registered or what runs has changed.

Owns: when a table is built and sent. Never: what is in it (publish.build_table), the workers' sockets.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec

from registry.keys import ApiKey
from registry.store import Registry
from serving.control.publish import Generations, ModelTraits, RunningReplica, build_table, same_but_generation
from serving.control.snapshot import RegistrySnapshot, take
from serving.control.workers import Published, Workers
from serving.engines.base import Capabilities
from serving.router.table import Limits, Table, Tracing

log = logging.getLogger("modelyard.publish")

APPLIED_TIMEOUT_S = 2.0
RETRY_S = 1.0


class Publisher:
    """One table at a time, in order. `mark` says that something changed; `publish` waits until workers serve by it."""

    def __init__(
        self,
        registry: Registry,
        workers: Workers,
        generations: Generations,
        *,
        replicas: Callable[[], Sequence[RunningReplica]],
        capabilities: Callable[[], Mapping[str, Capabilities]],
    ) -> None:
        self._registry = registry
        self._workers = workers
        self._generations = generations
        self._replicas = replicas
        self._capabilities = capabilities
        self._traits: Mapping[str, ModelTraits] = {}
        self._limits = Limits()
        self._tracing: Tracing | None = None
        self._require_keys = False
        self._table: Table | None = None
        self._marked = asyncio.Event()
        self._lock = asyncio.Lock()

    @property
    def table(self) -> Table | None:
        """The table published last."""
        return self._table

    def configure(self, traits: Mapping[str, ModelTraits], limits: Limits, *, require_keys: bool = False) -> None:
        """What the configuration in force says; takes effect with the next table."""
        self._traits, self._limits, self._require_keys = traits, limits, require_keys

    def trace(self, tracing: Tracing | None) -> None:
        """Which requests are traced; takes effect with the next table."""
        self._tracing = tracing

    def mark(self) -> None:
        """Something changed: publish soon."""
        self._marked.set()

    async def run(self) -> None:
        """Publish after every mark, until cancelled. What cannot be published now is tried again."""
        while True:
            await self._marked.wait()
            try:
                await self.publish()
            except Exception:
                log.exception("the table could not be published; trying again")
                await asyncio.sleep(RETRY_S)
                self._marked.set()

    def _read(self) -> tuple[RegistrySnapshot, list[ApiKey], bool]:
        """Every model, the keys that are not revoked, and whether one was ever made."""
        return take(self._registry), self._registry.keys_in_force(), self._registry.has_keys()

    async def publish(self) -> Published:
        """Build the table of this moment; where it routes otherwise than the last one, send it."""
        async with self._lock:
            self._marked.clear()
            snapshot, keys, made = await asyncio.to_thread(self._read)
            self._generations.seen(self._workers.generation_seen)
            table = build_table(
                snapshot,
                self._replicas(),
                traits=self._traits,
                limits=self._limits,
                generation=0,
                capabilities=self._capabilities(),
                keys=keys,
                keys_required=self._require_keys or made,
            )
            table = msgspec.structs.replace(table, tracing=self._tracing)
            if self._table is not None and same_but_generation(table, self._table):
                table = self._table
            else:
                table = msgspec.structs.replace(table, generation=self._generations.next())
            self._table = table
            published = await self._workers.publish(table, APPLIED_TIMEOUT_S)
            if published.waiting_for:
                log.warning(
                    "generation %d is not confirmed by %s yet", table.generation, ", ".join(published.waiting_for)
                )
            return published
