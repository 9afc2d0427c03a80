"""All engines of a yard: what is wanted is started or adopted, what is not is stopped, and nothing is left behind.

Owns: which replicas there are, and `engines/` in the state directory. Never: routes, artifacts, clients' bytes.

    supervisor = Supervisor(state.engines, on_change=publish)
    await supervisor.apply([EngineVersion(ref=…, digest=…, manifest=…, files=…)])
    await supervisor.wait_ready(60)
    …
    await supervisor.stop(10)       # or detach(), to leave the engines running for the next control plane

An engine runs in a session of its own and outlives the control plane. `engines/<replica>/engine.json` says which
process it is; a new supervisor adopts it where pid and start, command line and digest are those wanted, and it
answers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx

from serving.engines import process
from serving.engines.base import EngineError, EngineVersion
from serving.engines.lifecycle import Policy, threads_per_engine
from serving.engines.replica import Replica, ReplicaStatus

log = logging.getLogger("modelyard.engines")

STOP_S: Final = 10.0
"""What an engine gets between SIGTERM and SIGKILL where nothing else is said."""
ELSEWHERE: Final = frozenset(("external", "hosted"))
"""Engines that compute on somebody else's machine: they take no share of the cores."""
GOING: Final = frozenset(("failed", "draining", "stopped"))
"""A replica in one of these states never comes back: where it is wanted, it is made anew."""

Drain = Callable[[str], Awaitable[None]]
"""Waits until the replica of that id has no requests left."""


class Supervisor:
    """Keeps the wanted engines running. Every method belongs to one event loop.

    `root` is the folder of all replicas; `on_change` is called in the loop when a replica's state changes.
    """

    def __init__(
        self,
        root: Path,
        *,
        on_change: Callable[[], None] = lambda: None,
        policy: Policy | None = None,
        chance: random.Random | None = None,
        cores: int | None = None,
    ) -> None:
        self._root = root.absolute()
        self._notify = on_change
        self._policy = policy or Policy()
        self._chance = chance or random.Random()  # noqa: S311 - jitter, nothing secret
        self._cores = cores or len(os.sched_getaffinity(0))
        self._client = httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
        self._replicas: dict[str, Replica] = {}
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._applying = asyncio.Lock()
        self._is_over = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(STOP_S)

    async def apply(
        self, wanted: Sequence[EngineVersion], *, drain: Drain | None = None, deadline_s: float = STOP_S
    ) -> None:
        """Make the replicas those that are wanted; returns when the others are gone, before the new ones are ready.

        A replica whose digest, interpreter and authorization are the same is left alone, unless it has failed: then it
        gets another chance. One that has to go is `draining` first, and `drain` is awaited. Raises EngineError for an
        engine of an unknown kind, before anything is changed, and where a stop comes first.
        """
        async with self._applying:
            await self._apply(wanted, drain, deadline_s)

    async def _apply(self, wanted: Sequence[EngineVersion], drain: Drain | None, deadline_s: float) -> None:
        threads = threads_per_engine(self._cores, sum(version.manifest.engine not in ELSEWHERE for version in wanted))
        made = {version.id: self._replica(version, threads) for version in wanted}
        kept = {
            identity
            for identity, replica in self._replicas.items()
            if identity in made and replica.life.state not in GOING and _same(replica.version, made[identity].version)
        }
        going = [replica for identity, replica in self._replicas.items() if identity not in kept]
        await self._retire(going, drain, deadline_s)
        await self._end_leftovers(set(made), deadline_s)
        if self._is_over:  # nobody would stop what is started now
            raise EngineError("the engines are being stopped: start the control plane again, then apply")
        for identity, replica in made.items():
            if identity not in kept:
                self._replicas[identity] = replica
                replica.start()
        self._on_change()

    async def restart(self, replica_id: str, *, drain: Drain | None = None, deadline_s: float = STOP_S) -> None:
        """Stop one replica and start it anew; returns when it is starting. It is `draining` first, and `drain` awaited.

        Raises EngineError where there is none of that id, or where nothing of it runs on this machine.
        """
        async with self._applying:
            before = self._replicas.get(replica_id)
            if before is None:
                raise EngineError(f"there is no engine {replica_id}")
            if before.version.manifest.engine == "external":
                raise EngineError(f"{replica_id} is run by somebody else: restart it where it runs")
            await self._retire([before], drain, deadline_s)
            if self._is_over:
                raise EngineError("the engines are being stopped")
            fresh = Replica(
                before.version, policy=self._policy, client=self._client, chance=self._chance, on_change=self._on_change
            )
            fresh.life = replace(fresh.life, restarts=before.life.restarts + 1)
            self._replicas[replica_id] = fresh
            fresh.start()
            self._on_change()

    def replicas(self) -> list[ReplicaStatus]:
        """Every replica's status, by id."""
        return [self._replicas[identity].status() for identity in sorted(self._replicas)]

    async def nudge(self, replica_id: str) -> None:
        """Look at the replica now: a worker saw it fail."""
        if replica_id in self._replicas:
            self._replicas[replica_id].nudge()

    async def wait_ready(
        self, timeout_s: float, progress: Callable[[Sequence[ReplicaStatus]], None] | None = None
    ) -> list[ReplicaStatus]:
        """Wait until every replica is ready or has failed, at most `timeout_s`; returns those that are not ready.

        `progress` is told of all of them at every change, and several times a second.
        """
        until = time.monotonic() + timeout_s
        while True:
            statuses = self.replicas()
            if progress is not None:
                progress(statuses)
            waiting = [status for status in statuses if status.state not in ("ready", "failed")]
            left_s = until - time.monotonic()
            if not waiting or left_s <= 0:
                return [status for status in statuses if status.state != "ready"]
            await self._wait_change(min(left_s, 0.25))

    async def stop(self, deadline_s: float) -> None:
        """Stop every engine: SIGTERM, SIGKILL at the deadline, whole process groups. Nothing is left running."""
        self._is_over = True
        await self._retire(list(self._replicas.values()), None, deadline_s)
        await self._client.aclose()

    async def detach(self) -> None:
        """Stop watching and leave the engines running, for the next supervisor to adopt."""
        self._is_over = True
        await asyncio.gather(*(replica.detach() for replica in self._replicas.values()))
        await self._client.aclose()

    def log_tail(self, replica_id: str, lines: int = 20) -> list[str]:
        """The last lines of the replica's log; empty where there is none."""
        if replica_id not in self._replicas:
            return []
        return process.tail(self._replicas[replica_id].folder, lines)

    def _replica(self, version: EngineVersion, threads: int) -> Replica:
        placed = replace(version, folder=self._root / version.id, threads=version.threads or threads)
        return Replica(placed, policy=self._policy, client=self._client, chance=self._chance, on_change=self._on_change)

    async def _retire(self, going: Sequence[Replica], drain: Drain | None, deadline_s: float) -> None:
        """Drain and stop, all at the same time; then forget them."""
        for replica in going:
            replica.drain()

        async def end(replica: Replica) -> None:
            if drain is not None:
                await drain(replica.version.id)
            await replica.stop(deadline_s)
            if self._replicas.get(replica.version.id) is replica:
                del self._replicas[replica.version.id]

        await asyncio.gather(*(end(replica) for replica in going))
        if going:
            self._on_change()

    async def _end_leftovers(self, wanted: set[str], deadline_s: float) -> None:
        """End engines that an earlier control plane left running and that are wanted no more."""
        folders = {path.parent for path in self._root.glob("*/*/engine.json")}
        folders |= await asyncio.to_thread(process.marked, self._root)
        known = {self._root / identity for identity in wanted | self._replicas.keys()}
        for folder in folders - known:
            log.info("engine %s is wanted no more; it is ended", folder.relative_to(self._root))
        await asyncio.gather(
            *(process.sweep(folder, process.recorded(folder), deadline_s) for folder in folders - known)
        )

    def _on_change(self) -> None:
        self._notify()
        task = asyncio.get_running_loop().create_task(self._announce())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _wait_change(self, timeout_s: float) -> None:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait(), timeout_s)
            except TimeoutError:
                return


def _same(one: EngineVersion, other: EngineVersion) -> bool:
    """Whether an engine of one need not be replaced for the other."""
    same_kind = (one.digest, one.python, one.authorization) == (other.digest, other.python, other.authorization)
    return same_kind and one.files == other.files
