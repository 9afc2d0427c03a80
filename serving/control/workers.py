"""The router's worker processes: started, adopted, restarted, drained; and every table to every one of them.

Owns: the processes and `workers/` in the state directory. Never: what a table says, reading segments.

A worker outlives the control plane. `workers/<id>/worker.json` says which process it is (pid and start, so that a
reused pid is not mistaken for it) and how it was started; a new control plane adopts it where that is what it would
start now and where its socket answers with Hello. What cannot be adopted is stopped.

A worker is replaced without a request noticing: its successor takes its listening socket (`router.listeners`), serves
the present table, and only then the old one drains. Two names take turns in a place, `w0` and `w0b`, so that sockets,
folders and segments do not clash.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from serving.control.links import WorkerLink
from serving.control.worker_process import (
    PortInUseError,
    Worker,
    WorkerStartError,
    check_port_free,
    environment,
    last_line,
    read_record,
    slot_of,
    socket_path,
    successor_of,
)
from serving.processes import wait_for_end
from serving.router.listeners import handover_path
from serving.router.protocol import Failure, Hello, Stats
from serving.router.table import Table

log = logging.getLogger("modelyard.workers")

HELLO_TIMEOUT_S = 15.0
ADOPT_TIMEOUT_S = 3.0
RESPAWN_FIRST_S = 0.1
RESPAWN_MAX_S = 5.0
STABLE_S = 30.0
APPLY_TIMEOUT_S = 10.0
LEAVE_S = 300.0
"""What a worker that was being replaced when the control plane died may take over what it has."""
POLL_S = 2.0
"""How often a worker is looked at where the kernel does not tell when it ends."""
CUT_OFF_S = 1.0
LOG_BYTES_MAX = 4 * 1024 * 1024
PORT_IN_USE_EXIT = 4
COUNTERS = "counters"
"""The file in `workers/` in which they count together; it stays when they go, and so do budgets."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What is known of one worker now."""

    id: str
    pid: int
    state: str
    """`ready`, `starting`, `backoff`, `draining`"""
    started_at: float
    restarts: int
    generation: int
    stats: Stats | None
    segment: str
    """The segment that it writes; "" before its first Hello."""


@dataclass(frozen=True, slots=True)
class Published:
    """How a table went out."""

    generation: int
    applied_ms: float
    waiting_for: tuple[str, ...]
    """Workers that did not confirm it in time; it reaches them when they can be reached."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """How one worker was replaced."""

    worker: str
    """The new one."""
    replaced: str
    ready_s: float
    """Until the new one served."""
    drained_s: float
    """Until the old one had answered what it had, or was cut off."""
    cut_off: int
    """Requests that the drain's deadline ended."""


@dataclass(slots=True)
class Progress:
    """How far a rolling replacement is."""

    total: int
    done: list[Replacement] = field(default_factory=list)
    step: str = ""
    """What goes on now, for people."""
    running: bool = True


class Workers:
    """All workers of a yard."""

    def __init__(
        self,
        root: Path,
        segments: Path,
        *,
        on_failure: Callable[[Failure], None],
        rng: random.Random,
        command: Sequence[str] = (sys.executable, "-m", "serving.router.worker"),
        samples: Path | None = None,
    ) -> None:
        self._root = root
        self._segments = segments
        self._on_failure = on_failure
        self._rng = rng
        self._command = tuple(command)
        self._samples = samples
        self._workers: dict[str, Worker] = {}
        self._table: Table | None = None
        self._is_over = False
        self._leaving: set[asyncio.Task[None]] = set()
        self._change = asyncio.Lock()
        self.progress: Progress | None = None
        """Of the last rolling replacement, or of the one that goes on."""
        self.host = ""
        self.port = 0
        self.tls: tuple[str, ...] = ()
        """The files of the certificate and the key that workers speak HTTPS with; none for plain HTTP."""
        self.generation_seen = 0
        """The highest generation that a worker said it serves by."""

    def left_running(self) -> bool:
        """Whether workers of an earlier control plane still run."""
        folders = self._root.iterdir() if self._root.is_dir() else ()
        return any((record := read_record(folder)) is not None and record.process() is not None for folder in folders)

    async def start(self, host: str, port: int, count: int) -> int:
        """Have `count` workers listen; adopt those that run already. Returns how many were adopted.

        Raises PortInUseError or WorkerStartError, in which case none that was started now is left.
        """
        self.host, self.port = host, port
        adopted = [slot for slot in range(count) if await self._adopt(slot)]
        await self._dismiss_strangers()
        if not adopted:
            check_port_free(host, port, "--port")
        try:
            for slot in range(count):
                if slot not in adopted:
                    await self._add(f"w{slot}")
        except BaseException:
            await self.stop(0.0)
            raise
        return len(adopted)

    async def resize(self, count: int, drain_s: float = 30.0) -> None:
        """Have `count` workers from now on; those above that drain, for at most `drain_s`.

        Raises WorkerStartError, also where a stop comes first.
        """
        async with self._change:
            for worker in [worker for worker in self._staying() if slot_of(worker.id) >= count]:
                await self._stop_one(worker, drain_s, replaced=count > 0)
                self._workers.pop(worker.id, None)  # only now: while it drains its segment may grow
            present = {slot_of(worker.id) for worker in self._staying()}
            for slot in range(count):
                if slot not in present:
                    await self._add(f"w{slot}")

    async def replace(self, drain_s: float) -> Progress:
        """Replace every worker, one after another, without a request noticing.

        A new one is started beside the old; once it serves the present table the old one drains, for at most `drain_s`.
        Raises WorkerStartError where a new one does not come up: the old one then goes on, and so do those after it.
        """
        async with self._change:
            old = sorted(self._staying(), key=lambda worker: slot_of(worker.id))
            self.progress = progress = Progress(len(old))
            try:
                for worker in old:
                    progress.done.append(await self._replace(worker, drain_s, progress))
            finally:
                progress.running = False
                progress.step = ""
            return progress

    async def _replace(self, old: Worker, drain_s: float, progress: Progress) -> Replacement:
        name = successor_of(old.id)
        began = time.monotonic()
        progress.step = f"starting {name} beside {old.id}"
        await self._add(name, taking=old)
        new = self._workers[name]
        generation = self._table.generation if self._table is not None else 0
        if not await new.link.wait_applied(generation, APPLY_TIMEOUT_S):
            await self._stop_one(new, 0.0)
            self._workers.pop(name, None)
            raise WorkerStartError(
                f"router worker {name} did not take the present table within {APPLY_TIMEOUT_S:.0f} s: {old.id} goes on"
            )
        ready = time.monotonic()
        progress.step = f"{name} serves; {old.id} finishes what it has"
        log.info("worker %s takes the place of %s", name, old.id)
        cut_off = await self._stop_one(old, drain_s, replaced=True)
        self._workers.pop(old.id, None)
        return Replacement(name, old.id, ready - began, time.monotonic() - ready, cut_off)

    def _staying(self) -> list[Worker]:
        """Workers that nobody is stopping."""
        return [worker for worker in self._workers.values() if not worker.stopping]

    async def publish(self, table: Table, timeout_s: float = 2.0) -> Published:
        """Send the table to every worker and wait, within bounds, until they serve by it."""
        started = time.perf_counter()
        self._table = table
        present = list(self._workers.values())
        for worker in present:
            worker.link.publish(table)
        serving = [worker for worker in present if worker.state == "ready" and worker.alive()]
        done = await asyncio.gather(*(worker.link.wait_applied(table.generation, timeout_s) for worker in serving))
        late = tuple(worker.id for worker, applied in zip(serving, done, strict=True) if not applied)
        return Published(table.generation, (time.perf_counter() - started) * 1000, late)

    async def ask(self, timeout_s: float = 0.25) -> None:
        """Have every worker say now what is true now."""
        await asyncio.gather(*(one.link.ask(timeout_s) for one in self._workers.values() if one.link.connected))

    def statuses(self) -> list[WorkerStatus]:
        return [
            WorkerStatus(
                id=one.id,
                pid=one.record.pid if one.record else 0,
                state=one.state if one.alive() else "backoff",
                started_at=one.record.started_at if one.record else 0.0,
                restarts=one.restarts,
                generation=one.link.applied,
                stats=one.link.stats if one.link.connected else None,
                segment=one.link.hello.segment if one.link.hello else "",
            )
            for one in self._workers.values()
        ]

    async def stop(self, deadline_s: float) -> None:
        """Drain all workers, at most for `deadline_s`; then none is left, and none is started any more."""
        self._is_over = True
        await asyncio.gather(*(self._stop_one(worker, deadline_s) for worker in self._workers.values()))
        await asyncio.gather(*self._leaving, return_exceptions=True)
        self._workers.clear()

    async def kill(self) -> None:
        """No more patience: none is left when this returns."""
        for worker in self._workers.values():
            worker.stopping = True
            worker.signal(signal.SIGKILL)

    async def abandon(self) -> list[subprocess.Popen[bytes]]:
        """Let go of the workers without stopping them, for another control plane to adopt. Returns those that are
        children of this process, which has to reap them."""
        for worker in self._workers.values():
            worker.stopping = True
            await self._unwatch(worker)
        return [worker.child for worker in self._workers.values() if worker.child is not None]

    async def _add(self, name: str, *, taking: Worker | None = None) -> None:
        """Start one more worker; `taking` is the one whose place it takes.

        Raises PortInUseError or WorkerStartError, and then it is not there.
        """
        if self._is_over:
            raise WorkerStartError(f"worker {name} is not started: the workers are being stopped, so start them anew")
        worker = self._make(name)
        try:
            await self._spawn_first(worker, taking)
        except BaseException:
            await self._stop_one(worker, 0.0)
            self._workers.pop(name, None)
            raise
        if self._is_over:  # a stop has overtaken this start
            await self._stop_one(worker, 0.0)
            self._workers.pop(name, None)
            raise WorkerStartError(f"worker {name} is not started: the workers are being stopped, so start them anew")
        self._keep(worker)

    def _keep(self, worker: Worker) -> None:
        worker.watch = asyncio.create_task(self._watch(worker), name=f"watch {worker.id}")

    def _make(self, name: str) -> Worker:
        folder = self._root / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = socket_path(folder)
        link = WorkerLink(name, path, on_failure=self._on_failure, on_hello=self._greeted)
        if self._table is not None:
            link.publish(self._table)
        worker = Worker(name, folder, link, path)
        worker.record_host, worker.tls = self.host, self.tls
        self._workers[name] = worker
        link.start()
        return worker

    def _greeted(self, hello: Hello) -> None:
        self.generation_seen = max(self.generation_seen, hello.generation)
        worker = self._workers.get(hello.worker)
        if worker is not None and worker.child is not None and worker.child.pid == hello.pid:
            self._ready(worker, hello)

    async def _adopt(self, slot: int) -> bool:
        """Take over the running worker of a place, where it listens where it should and answers.

        There are two where the control plane died while one was being replaced: the later one that can serve is kept,
        and the other finishes what it has.
        """
        found = [name for name in (f"w{slot}", f"w{slot}b") if await self._adopt_one(name)]
        if len(found) == 2:
            found.sort(key=lambda name: self._standing(self._workers[name]))
            self._leave(self._workers[found[0]])
        return bool(found)

    def _standing(self, worker: Worker) -> tuple[bool, float]:
        hello, record = worker.link.hello, worker.record
        return hello is not None and hello.generation > 0, record.started_at if record is not None else 0.0

    def _leave(self, worker: Worker) -> None:
        """Have a worker finish what it has, while everything else goes on."""

        async def finish() -> None:
            await self._stop_one(worker, LEAVE_S, replaced=True)
            self._workers.pop(worker.id, None)

        task = asyncio.create_task(finish(), name=f"leave {worker.id}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _adopt_one(self, name: str) -> bool:
        record = read_record(self._root / name)
        if record is None or record.process() is None or record.host != self.host or self.port not in (0, record.port):
            return False
        if record.tls != self.tls:
            return False
        self.port = self.port or record.port
        worker = self._make(name)
        worker.record = record
        hello = await worker.link.wait_hello(ADOPT_TIMEOUT_S)
        if hello is None or hello.pid != record.pid:
            await worker.link.close()
            del self._workers[name]
            return False
        worker.state = "ready"
        self._keep(worker)
        log.info("adopted worker %s, pid %d", name, record.pid)
        return True

    async def _dismiss_strangers(self) -> None:
        """Stop workers of earlier control planes that cannot be adopted."""
        kept = {worker.record.pid for worker in self._workers.values() if worker.record is not None}
        leaving = await asyncio.to_thread(self._strangers, kept)
        for process in leaving:
            log.info("stopping the worker with pid %d: it cannot be adopted", process.pid)
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, deaf = await asyncio.to_thread(psutil.wait_procs, leaving, timeout=5.0)
        for process in deaf:
            with contextlib.suppress(psutil.Error):
                process.kill()
        await asyncio.to_thread(psutil.wait_procs, deaf, timeout=2.0)

    def _strangers(self, kept: set[int]) -> list[psutil.Process]:
        """Every process that writes segments of this yard, but for those kept: one whose control plane was killed
        before it wrote `worker.json` is among them."""
        records = map(read_record, self._root.iterdir() if self._root.is_dir() else ())
        found = {record.pid: process for record in records if record and (process := record.process()) is not None}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[-2:] == ["--segments", str(self._segments)]:
                    found[process.pid] = process
        return [process for pid, process in found.items() if pid not in kept]

    def _spawn(self, worker: Worker, taking: Worker | None = None) -> None:
        worker.socket.unlink(missing_ok=True)
        worker.link.hello = None
        worker.link.hurry()
        path = worker.folder / "log"
        if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
            path.replace(worker.folder / "log.1")
        arguments: tuple[str, ...] = ("--id", worker.id, "--host", self.host, "--port", str(self.port))
        giver = taking or self._giver(worker)
        if giver is not None:
            arguments += ("--take", str(handover_path(giver.socket)))
        if worker.tls:
            arguments += ("--tls-certificate", worker.tls[0], "--tls-key", worker.tls[1])
        if self._samples is not None:
            arguments += ("--samples", str(self._samples))
        counters = ("--counters", str(self._root / COUNTERS))
        places = (*counters, "--socket", str(worker.socket), "--segments", str(self._segments))
        with path.open("ab") as output:
            worker.child = subprocess.Popen(
                [*self._command, *arguments, *places],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=environment(),
            )
        worker.remember(self.port)

    def _giver(self, worker: Worker) -> Worker | None:
        """Another worker that accepts on the socket that this one should accept on too."""
        others = (one for one in self._staying() if one is not worker and one.state == "ready" and one.alive())
        return next((one for one in others if handover_path(one.socket).exists()), None)

    async def _spawn_first(self, worker: Worker, taking: Worker | None) -> None:
        """Start a worker and wait for its Hello. Raises PortInUseError or WorkerStartError."""
        self._spawn(worker, taking)
        waiting = asyncio.create_task(worker.link.wait_hello(HELLO_TIMEOUT_S))
        while not waiting.done() and worker.alive():
            await asyncio.wait({waiting}, timeout=0.05)
        if not waiting.done():
            waiting.cancel()
            assert worker.child is not None
            said = last_line(worker.folder / "log")
            if worker.child.returncode == PORT_IN_USE_EXIT:
                raise PortInUseError(said or f"port {self.port} is in use: choose another --port")
            raise WorkerStartError(f"router worker {worker.id} exited with code {worker.child.returncode}: {said}")
        hello = await waiting
        if hello is None:
            raise WorkerStartError(
                f"router worker {worker.id} did not answer within {HELLO_TIMEOUT_S:.0f} s: see {worker.folder / 'log'}"
            )

    def _ready(self, worker: Worker, hello: Hello) -> None:
        worker.state = "ready"
        if self.port == 0:
            self.port = hello.port
        worker.remember(self.port)

    async def _watch(self, worker: Worker) -> None:
        """Start the worker again whenever it dies, later each time unless it was stable."""
        delay_s = RESPAWN_FIRST_S
        born = time.monotonic()
        while not worker.stopping:
            await wait_for_end(worker.pid, POLL_S)
            if worker.alive() or worker.stopping:
                continue
            worker.state = "backoff"
            delay_s = RESPAWN_FIRST_S if time.monotonic() - born > STABLE_S else min(delay_s * 2, RESPAWN_MAX_S)
            log.warning("worker %s died (%s); starting it again", worker.id, last_line(worker.folder / "log") or "-")
            await asyncio.sleep(delay_s * self._rng.uniform(0.5, 1.5))
            if worker.stopping:
                return
            worker.restarts += 1
            worker.state = "starting"
            born = time.monotonic()
            self._spawn(worker)

    async def _unwatch(self, worker: Worker) -> None:
        if worker.watch is not None:
            worker.watch.cancel()
            await asyncio.gather(worker.watch, return_exceptions=True)
        await worker.link.close()

    async def _stop_one(self, worker: Worker, deadline_s: float, *, replaced: bool = False) -> int:
        """Have a worker drain, at most for `deadline_s`, and end it. Returns how many requests were cut off."""
        worker.stopping = True
        worker.state = "draining"
        if worker.link.connected:
            worker.link.drain(deadline_s, replaced=replaced)
        else:
            worker.signal(signal.SIGTERM)
        limit = time.monotonic() + deadline_s + CUT_OFF_S  # at its deadline it tells its clients that it cuts them off
        while worker.alive() and time.monotonic() < limit:  # noqa: ASYNC110 - an adopted process gives no event
            await asyncio.sleep(0.02)
        worker.signal(signal.SIGKILL)
        late = worker.link.stats.cut_off if worker.link.stats is not None else 0
        await self._unwatch(worker)
        while worker.alive():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)
        if worker.child is not None:
            worker.child.wait()
        (worker.folder / "worker.json").unlink(missing_ok=True)
        worker.socket.unlink(missing_ok=True)
        handover_path(worker.socket).unlink(missing_ok=True)
        return late
