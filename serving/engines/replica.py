"""One replica: keeps an engine running and knows how it does.

Owns: the loop of one replica (adopt or start, probe, watch, start again) and its status. Never: deciding which replicas
there are (the supervisor does), transitions and waits (the lifecycle module has them).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import httpx

from registry.terminal import UserError
from serving.engines import lifecycle, process
from serving.engines.base import Capabilities, EngineKind, EngineVersion, Launch, fingerprint, kind
from serving.engines.lifecycle import Life, Policy, State
from serving.engines.probe import NotReadyError, probe, ready
from serving.router.table import ANY_NAME

log = logging.getLogger("modelyard.engines")

HEALTH_S: Final = 1.0
STARTING_S: Final = 0.05
STARTING_MAX_S: Final = 0.5
FAMILY_S: Final = 10.0
"""How often an engine's children are looked for; in between, those known are read."""
LAST_WORDS: Final = 8
"""Lines of a dead engine's log in its error."""
ADOPT_S: Final = 10.0
"""How long an engine that was found running may take to answer."""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What is known of one replica now."""

    id: str
    """`assistant@v1/0`"""
    model: str
    label: str
    kind: str
    state: State
    host: str
    port: int
    """0 while there is none."""
    pid: int
    """0 while no process of ours runs."""
    since: float
    """Unix seconds at which it came into its state."""
    restarts: int
    last_error: str
    log_path: str
    """"" for an engine that somebody else runs."""
    served_names: tuple[str, ...]
    capabilities: Capabilities | None
    digest: str
    device: str
    """`cpu`, `gpu`; "" for an engine that somebody else runs."""
    rss: int
    """Resident bytes, its children included."""
    cpu_time_s: float
    adopted: bool
    """Found running by this supervisor, not started by it."""


class Replica:
    """Runs one wanted replica until it is stopped."""

    def __init__(
        self,
        version: EngineVersion,
        *,
        policy: Policy,
        client: httpx.AsyncClient,
        chance: random.Random,
        on_change: Callable[[], None],
    ) -> None:
        self.version = version
        self.life = Life(since=time.monotonic())
        self.capabilities: Capabilities | None = None
        self.adopted = False
        self._kind: EngineKind = kind(version.manifest.engine)
        self._policy = policy
        self._client = client
        self._chance = chance
        self._on_change = on_change
        self._launch: Launch | None = None
        self._process: process.EngineProcess | None = None
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._usage = (0, 0.0)
        self._family_at = 0.0
        self._pidfd = -1

    @property
    def folder(self) -> Path:
        return self.version.folder

    def status(self) -> ReplicaStatus:
        launch, life = self._launch, self.life
        owned = launch is None or bool(launch.argv)
        return ReplicaStatus(
            id=self.version.id,
            model=self.version.ref.model,
            label=self.version.ref.label,
            kind=self._kind.name,
            state=life.state,
            host=launch.host if launch else "",
            port=launch.port if launch else 0,
            pid=self._process.pid if self._process else 0,
            since=time.time() - (time.monotonic() - life.since),
            restarts=life.restarts,
            last_error=life.last_error,
            log_path=str(self.folder / "log") if owned else "",
            served_names=self._served_names(),
            capabilities=self.capabilities,
            digest=self.version.digest,
            device=("gpu" if _on_gpu(self.version) else "cpu") if owned else "",
            rss=self._usage[0],
            cpu_time_s=self._usage[1],
            adopted=self.adopted,
        )

    def start(self) -> None:
        """Begin to watch; adopts the engine that runs, if it is the one wanted."""
        self._task = asyncio.create_task(self._run(), name=f"engine {self.version.id}")

    def nudge(self) -> None:
        """Look now: somebody saw it fail."""
        self._wake.set()

    def drain(self) -> None:
        self._become(lifecycle.draining(self.life, time.monotonic()))

    async def stop(self, deadline_s: float) -> None:
        """End the engine and everything that it started. Returns when nothing of it runs."""
        await self._forget()
        self._unwatch()
        if self._process is not None:
            await self._process.end(deadline_s)
            self._process = None
        elif self._launch is None or self._launch.argv:
            await process.sweep(self.folder, None, deadline_s)
        self._usage = (0, self._usage[1])
        self._become(lifecycle.stopped(self.life, time.monotonic()))

    async def detach(self) -> None:
        """Stop watching and leave the engine running, for another supervisor to adopt."""
        await self._forget()
        self._unwatch()

    async def _forget(self) -> None:
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        try:
            await self._adopt()
            while True:
                await self._turn()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("engine %s: its watch failed", self.version.id)
            self._become(lifecycle.refused(self.life, time.monotonic(), f"its watch failed: {error!r}"))

    async def _turn(self) -> None:
        """One look at the engine, and the wait until the next."""
        now = time.monotonic()
        if self.life.state == "failed" or (self.life.state == "draining" and self._process is None):
            await self._sleep(None)
        elif self._launch is None or (self._launch.argv and self._process is None):
            if now < self.life.retry_at:
                await self._sleep(self.life.retry_at - now)
            else:
                self._start(now)
        elif self._process is not None and not self._process.alive():
            await self._died(f"it ended with status {self._process.exit_status}")
        elif lifecycle.hung(self.life, self._policy, now) and self._process is not None:
            await self._died(f"it did not answer: {self.life.last_error}")
        else:
            await self._look()
            await self._sleep(self._interval())

    def _interval(self) -> float:
        if self.life.state != "starting" or self._process is None:
            return HEALTH_S
        age_s = time.monotonic() - self.life.launched_at
        return min(STARTING_MAX_S, max(STARTING_S, age_s / 20))

    def _start(self, now: float) -> None:
        """Start the engine on a free port, or begin to ask the one that somebody else runs."""
        self._become(lifecycle.launched(self.life, now))
        try:
            self._launch = launch = self._kind.launch(self.version, free_port())
            if launch.argv:
                self._process = process.start(
                    self.folder,
                    launch,
                    replica=self.version.id,
                    digest=self.version.digest,
                    fingerprint=fingerprint(self._kind, self.version),
                    restarts=self.life.restarts,
                )
                self._watch_pid()
        except (UserError, OSError) as error:
            self._launch = None
            self._become(lifecycle.refused(self.life, time.monotonic(), str(error)))

    async def _adopt(self) -> None:
        """Take over the engine that runs, if it is the one that would be started now; end it where it is not."""
        record = process.recorded(self.folder)
        if record is None:
            await process.sweep(self.folder, None, deadline_s=0.0)
            return
        found = process.EngineProcess(self.folder, record, None)
        try:
            wanted = (self.version.digest, fingerprint(self._kind, self.version))
        except UserError:
            wanted = ("", "")
        if found.alive() and (record.digest, record.fingerprint) == wanted:
            launch = self._kind.launch(self.version, record.port)
            if await self._answers(launch, ADOPT_S):
                self._launch, self._process = launch, found
                self.capabilities, self.adopted = record.capabilities, True
                now = time.monotonic()
                self.life = replace(self.life, launched_at=now, answered_at=now, restarts=record.restarts)
                self._watch_pid()
                await self._look()
                return
        log.info("engine %s: what runs is not what is wanted; it is ended", self.version.id)
        await found.end(deadline_s=2.0)

    async def _answers(self, launch: Launch, timeout_s: float) -> bool:
        until = time.monotonic() + timeout_s
        while True:
            try:
                await ready(self._client, launch)
            except NotReadyError:
                if time.monotonic() >= until:
                    return False
                await asyncio.sleep(STARTING_MAX_S)
            else:
                return True

    async def _look(self) -> None:
        """Ask the engine whether it is ready, and the first time what it can do."""
        assert self._launch is not None
        try:
            await ready(self._client, self._launch)
        except NotReadyError as error:
            self._become(lifecycle.missed(self.life, self._policy, time.monotonic(), str(error)))
        else:
            if self.capabilities is None or (self._process and self._process.record.capabilities is None):
                await self._probe(self._launch)
            self._become(lifecycle.answered(self.life, self._policy, time.monotonic()))
        if self._process is not None:
            now = time.monotonic()
            refresh = now - self._family_at >= FAMILY_S
            self._family_at = now if refresh else self._family_at
            self._usage = self._process.usage(refresh=refresh)
            process.bound_log(self.folder)

    async def _probe(self, launch: Launch) -> None:
        name = next((name for name in launch.served_names if name != ANY_NAME), "")
        self.capabilities = await probe(self._client, launch, self._kind.name, name)
        if self._process is not None:
            self._process.remember(self.capabilities)

    async def _died(self, reason: str) -> None:
        """Clear what the engine left behind and plan its next start; its last log lines become the error."""
        assert self._process is not None
        self._unwatch()
        gone = self._process
        await gone.end(deadline_s=0.0)
        self._process = None
        self._usage = (0, self._usage[1])
        words = "\n".join(process.tail(self.folder, LAST_WORDS))
        error = f"{reason}; its last log lines:\n{words}" if words else f"{reason}; its log is empty"
        chance = self._chance.random()
        now = time.monotonic()
        self._become(lifecycle.died(self.life, self._policy, now, error, chance=chance, status=gone.exit_status))
        log.warning("engine %s: %s", self.version.id, error)

    def _served_names(self) -> tuple[str, ...]:
        if self._launch is None:
            return (ANY_NAME,)
        names = self._launch.served_names or (self.capabilities.model_names if self.capabilities else ())
        return names or (ANY_NAME,)

    def _become(self, life: Life) -> None:
        before, self.life = self.life, life
        if (before.state, before.restarts) != (life.state, life.restarts):
            self._on_change()

    async def _sleep(self, timeout_s: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), timeout_s)
        self._wake.clear()  # after the wait: what happened while it was looked at is looked at now

    def _watch_pid(self) -> None:
        """Wake up in the moment in which the process ends, where the kernel tells."""
        assert self._process is not None
        with contextlib.suppress(OSError):
            self._pidfd = os.pidfd_open(self._process.pid)
            asyncio.get_running_loop().add_reader(self._pidfd, self._ended)

    def _ended(self) -> None:
        self._unwatch()
        self._wake.set()

    def _unwatch(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def free_port() -> int:
    """A port on loopback that nothing listens on now; whoever loses a race for it starts again on another."""
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        port: int = probe_socket.getsockname()[1]
        return port


def _on_gpu(version: EngineVersion) -> bool:
    """Whether the engine computes on a GPU: there is one, and the version does not say otherwise."""
    if not Path("/dev/nvidiactl").exists():
        return False
    arguments = version.manifest.engine_args
    return arguments.get("device") != "cpu" and arguments.get("n_gpu_layers") != 0
