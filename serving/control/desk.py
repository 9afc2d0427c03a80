"""What the admin API asks of a running yard: status, cost, logs, another configuration.

Owns: putting the parts' answers together, and applying a configuration while everything runs. Never: HTTP, start and
stop (yard).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from monitoring.drift_watch import DriftWatch
from monitoring.sample_ratio import Splits
from monitoring.sampler import Sampler
from monitoring.statement import DEFAULT_BY, Dimension, Statement
from registry.errors import ConflictError, NotFoundError
from registry.state import YardInfo
from registry.store import Registry
from serving.config import ServerConfig, YardConfig
from serving.control import snapshot
from serving.control.access import check_public, tls_files
from serving.control.accounts import Accounts
from serving.control.admin_models import Readiness, ReplacementView, Restart, Status
from serving.control.apply import Applier, limits_of, prices_of, tracing_of, traits_of
from serving.control.changes import Changes
from serving.control.costs import Costs
from serving.control.health import readiness
from serving.control.outlets import Outlets
from serving.control.plan import Plan
from serving.control.publisher import Publisher
from serving.control.samples import Samples
from serving.control.status import (
    device_view,
    drift_lines,
    inflight_of,
    model_statuses,
    replica_view,
    state_of,
    tls_problems,
    worker_view,
)
from serving.control.ui import Options
from serving.control.workers import Progress, Workers
from serving.engines.replica import ReplicaStatus
from serving.engines.supervisor import Supervisor

EMPTY_STEP_S = 0.1
TOLD = frozenset({"workers", "database", "disk", "devices", "access log", "tracing"})
"""Dependencies whose problems stand nowhere else in the status."""


@dataclass
class Parts:
    """What a yard is made of, and the configuration in force."""

    config: YardConfig
    options: Options
    registry: Registry
    applier: Applier
    workers: Workers
    supervisor: Supervisor
    publisher: Publisher
    changes: Changes
    sampler: Sampler
    accounts: Accounts
    costs: Costs
    outlets: Outlets
    samples: Samples
    drift: DriftWatch
    splits: Splits


@dataclass(frozen=True, slots=True)
class EngineRestart:
    """How an engine was drained that is starting anew."""

    replica: str
    drained_s: float
    """Until it had answered what it had, or `server.drain_s` was over."""
    unfinished: int
    """Requests that it still had then; its process was told to end all the same."""


class Desk:
    """Answers for one yard; `info` says what `yard.json` says."""

    def __init__(
        self, parts: Parts, info: Callable[[], YardInfo], *, requests: Path, certificate_changed: Callable[[str], None]
    ) -> None:
        self._parts = parts
        self._requests = requests
        self._certificate_changed = certificate_changed
        self._info = info
        self._apply_lock = asyncio.Lock()
        self._restarting: set[str] = set()
        """Engines whose restart is under way, or waits for an apply."""

    @property
    def registry(self) -> Registry:
        return self._parts.registry

    @property
    def changes(self) -> Changes:
        return self._parts.changes

    @property
    def samples(self) -> Samples:
        return self._parts.samples

    @property
    def drift(self) -> DriftWatch:
        return self._parts.drift

    @property
    def costs(self) -> Costs:
        return self._parts.costs

    async def scrape(self) -> CollectorRegistry:
        await self._parts.costs.refresh()
        return await self._parts.accounts.scrape()

    async def cost(
        self, since: float | None, until: float | None = None, by: Sequence[Dimension] = DEFAULT_BY
    ) -> Statement:
        return await self._parts.accounts.cost(since, until, by)

    def version_state(self, model: str, label: str) -> str:
        return state_of(one for one in self._parts.supervisor.replicas() if (one.model, one.label) == (model, label))

    def engine_log(self, replica: str, lines: int) -> tuple[str, Sequence[str]]:
        """Path and last lines of an engine's log. Raises NotFoundError."""
        found = next((one for one in self._parts.supervisor.replicas() if one.id == replica), None)
        if found is None:
            raise self._no_engine(replica)
        return str(found.log_path), self._parts.supervisor.log_tail(replica, lines)

    def _no_engine(self, name: str) -> NotFoundError:
        known = ", ".join(one.id for one in self._parts.supervisor.replicas()) or "none"
        return NotFoundError(f"there is no engine {name}", remedy=f"there are {known}")

    def _own_engine(self, name: str) -> ReplicaStatus:
        """The engine of that id, or the only one of that version, if this yard runs it.

        Raises NotFoundError or ConflictError.
        """
        replicas = self._parts.supervisor.replicas()
        found = [one for one in replicas if name in (one.id, f"{one.model}@{one.label}")]
        if not found:
            raise self._no_engine(name)
        if len(found) > 1:
            known = ", ".join(one.id for one in found)
            raise ConflictError(f"{name} has {len(found)} engines", remedy=f"name one of {known}")
        if found[0].kind == "external":
            raise ConflictError(f"{found[0].id} is run by somebody else", remedy="restart it where it runs")
        return found[0]

    async def status(self) -> Status:
        figures = await self._parts.accounts.fresh()
        known = await asyncio.to_thread(snapshot.take, self._parts.registry)
        replicas, workers = self._parts.supervisor.replicas(), self._parts.workers.statuses()
        inflight = inflight_of(workers)
        devices = [device_view(reading) for reading in self._parts.sampler.latest()]
        away = [one for one in (await self.readiness()).dependencies if one.state != "ok"]
        lost = {one.id: one.stats.records_lost for one in workers if one.stats and one.stats.records_lost}
        return Status(
            generation=self._parts.publisher.table.generation if self._parts.publisher.table else 0,
            uptime_s=time.time() - self._info().started_at,
            url=self._info().url,
            admin_url=self._info().admin_url,
            pid=os.getpid(),
            config=self._info().config,
            models=model_statuses(
                known,
                self._parts.config.models,
                replicas,
                inflight=inflight,
                usage=figures.usage,
                rates=self._parts.accounts.rates(),
                statement=figures.statement,
                currency=self._parts.config.prices.currency,
            ),
            engines=[replica_view(one, inflight[one.id]) for one in replicas],
            workers=[worker_view(one) for one in workers],
            device=devices[0] if devices else None,
            devices=devices,
            drift=drift_lines(self._parts.drift.board.drifts),
            problems=[
                *self._parts.accounts.problems(),
                *(f"{one.id} failed: {one.last_error}" for one in replicas if one.state == "failed"),
                *(f"worker {name} could not write {count} records" for name, count in lost.items()),
                *(f"{one.name}: {one.detail}" for one in away if one.name in TOLD),
                *(f"the certificate in use stays: {problem}" for problem in tls_problems(workers)),
                *([f"live drift is not checked: {problem}"] if (problem := self._parts.drift.problem) else []),
            ],
        )

    async def readiness(self) -> Readiness:
        return await readiness(self._parts, self._requests, time.time())

    async def restart_workers(self, *, actor: str) -> Restart:
        """Replace every router worker. Raises ConflictError while that goes on already, or NotThereError."""
        workers = self._parts.workers
        if workers.progress is not None and workers.progress.running:
            raise ConflictError("the workers are being replaced already", remedy="wait, `modelyard status` shows them")
        await workers.replace(self._parts.config.server.drain_s)
        done = self.restart_progress()
        after = {"workers": [one.worker for one in done.replacements]}
        record = partial(self._parts.registry.record, "workers.restart", self._info().config)
        await asyncio.to_thread(record, actor=actor, at=time.time(), after=after)
        return done

    async def restart_engine(self, name: str, *, actor: str) -> EngineRestart:
        """Let an engine answer what it has, then start it anew; returns once it is starting. `name` is a replica's, or
        that of a version with one engine.

        Raises NotFoundError; ConflictError for an engine that somebody else runs, for one that is being restarted, and
        where a version has several; EngineError where a stop comes first.
        """
        replica = self._own_engine(name).id
        if replica in self._restarting:
            raise ConflictError(f"{replica} is being restarted already", remedy="wait, `modelyard status` shows it")
        done = EngineRestart(replica, 0.0, 0)

        async def drain(identity: str) -> None:
            nonlocal done
            began = time.monotonic()
            await self._emptied(identity)
            left = inflight_of(self._parts.workers.statuses())[identity]
            done = EngineRestart(identity, time.monotonic() - began, left)

        self._restarting.add(replica)
        try:
            async with self._apply_lock:
                before = self._own_engine(replica)  # what was applied meanwhile may want it no more
                await self._parts.supervisor.restart(replica, drain=drain)
        finally:
            self._restarting.discard(replica)
        record = partial(self._parts.registry.record, "engine.restart", replica)
        await asyncio.to_thread(record, actor=actor, at=time.time(), before={"state": before.state, "pid": before.pid})
        return done

    def restart_progress(self) -> Restart:
        progress = self._parts.workers.progress or Progress(0, running=False)
        made = [ReplacementView(**asdict(one)) for one in progress.done]
        return Restart(running=progress.running, total=progress.total, step=progress.step, replacements=made)

    async def apply(self, config: YardConfig, base: Path, *, actor: str, dry_run: bool) -> Plan:
        """Bring the running yard to a configuration; unchanged engines and all routes are left alone.

        Raises RefusedError, UserError or RegistryError, and then no engine was touched. Where the router and the admin
        API listen changes with the next start only.
        """
        parts = self._parts
        async with self._apply_lock:
            config = config.model_copy(update={"server": self._server_of(config)})
            check_public(config.server, has_keys=await asyncio.to_thread(parts.registry.has_keys))
            running = parts.supervisor.replicas()
            prepare = partial(parts.applier.prepare, config, base, running)
            plan, _ = await asyncio.to_thread(prepare, fetching=not dry_run)  # may take minutes: traffic can change
            if dry_run:
                return plan
            secure = parts.workers.tls
            if config.server.tls != parts.config.server.tls:
                secure = await asyncio.to_thread(tls_files, config.server, base)
            open_outlets = await asyncio.to_thread(parts.outlets.configure, config.server, base)
            async with parts.changes.lock:
                plan, drafts = await asyncio.to_thread(prepare, fetching=True)
                at = time.time()
                await asyncio.to_thread(parts.applier.register, plan, drafts, config, base, actor=actor, at=at)
                traits = traits_of(config)
                there = {one.id: one.digest for one in running}
                wanted = await asyncio.to_thread(parts.applier.wanted, config, base, running=there)
                await parts.accounts.reprice(prices_of(config))
                parts.config = config
                parts.publisher.configure(traits, limits_of(config.server), require_keys=config.server.require_keys)
                parts.publisher.trace(tracing_of(config.server))
                parts.sampler.watch(config.monitoring.sample_hz)
            await asyncio.to_thread(open_outlets)
            await parts.workers.resize(config.server.workers, config.server.drain_s)
            await self._retool(secure, config.server.drain_s)
            await parts.supervisor.apply(wanted, drain=self._emptied)
            await parts.publisher.publish()
            after = {"steps": [f"{step.kind} {step.subject}" for step in plan.changes]}
            record = partial(parts.registry.record, "config.apply", self._info().config)
            await asyncio.to_thread(record, actor=actor, at=at, after=after)
            return plan

    async def _retool(self, secure: tuple[str, ...], drain_s: float) -> None:
        """Replace the workers, one by one, where they would be started otherwise now."""
        workers = self._parts.workers
        if secure == workers.tls:
            return
        before, workers.tls = workers.tls, secure
        try:
            await workers.replace(drain_s)
        except BaseException:
            workers.tls = before
            raise
        self._certificate_changed(secure[0])

    def _server_of(self, config: YardConfig) -> ServerConfig:
        """The file's server section with what cannot change while it runs as it is."""
        ours = self._parts.config.server
        fixed: dict[str, Any] = self._parts.options.grants()
        fixed |= {"host": ours.host, "port": ours.port, "admin_host": ours.admin_host, "admin_port": ours.admin_port}
        if (ours.tls is None) != (config.server.tls is None):
            fixed["tls"] = ours.tls  # clients that speak HTTP cannot be made to speak HTTPS
        if self._parts.options.workers is not None:
            fixed["workers"] = self._parts.options.workers
        return config.server.model_copy(update=fixed)

    async def _emptied(self, replica: str) -> None:
        """Give an engine that will stop no new requests, and wait until it has answered those it has, within bounds."""
        await self._parts.publisher.publish()
        limit = time.monotonic() + self._parts.config.server.drain_s
        while time.monotonic() < limit:
            await self._parts.workers.ask()
            if not inflight_of(self._parts.workers.statuses())[replica]:
                return
            await asyncio.sleep(EMPTY_STEP_S)
