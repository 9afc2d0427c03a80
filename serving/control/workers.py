"""The router's worker processes: started, adopted, restarted, drained; and every table to every one of them.

Owns: the processes and `workers/` in the state directory. Never: what a table says, reading segments.

A worker outlives the control plane. `workers/<id>/worker.json` says which process it is (pid and start, so that a
reused pid is not mistaken for it) and how it was started; a new control plane adopts it where that is what it would
start now and where its socket answers with Hello. What cannot be adopted is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from registry.terminal import NotThereError
from serving.control.links import WorkerLink
from serving.processes import recognised, since_boot_s
from serving.router.protocol import Failure, Hello, Stats
from serving.router.table import Table

log = logging.getLogger("modelyard.workers")

SOCKET_PATH_BYTES_MAX = 100
"""Linux allows 107 bytes in a Unix socket's address."""
HELLO_TIMEOUT_S = 15.0
ADOPT_TIMEOUT_S = 3.0
RESPAWN_FIRST_S = 0.1
RESPAWN_MAX_S = 5.0
STABLE_S = 30.0
POLL_S = 0.2
CUT_OFF_S = 1.0
LOG_BYTES_MAX = 4 * 1024 * 1024
PORT_IN_USE_EXIT = 4


class PortInUseError(NotThereError):
    """Somebody else listens on a port that the yard was told to use."""


class WorkerStartError(NotThereError):
    """A worker did not come up."""


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """`worker.json`: which process a worker is and how it was started."""

    id: str
    pid: int
    born_s: float
    """From the machine's boot to its start."""
    started_at: float
    """Unix seconds."""
    host: str
    port: int
    socket: str

    def process(self) -> psutil.Process | None:
        """The process, if it is this one and alive."""
        return recognised(self.pid, self.born_s)


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


class Worker:
    """One worker's process and its link, over as many lives as it takes."""

    def __init__(self, worker_id: str, folder: Path, link: WorkerLink, socket_path: Path) -> None:
        self.id = worker_id
        self.folder = folder
        self.link = link
        self.socket = socket_path
        self.record: WorkerRecord | None = None
        self.child: subprocess.Popen[bytes] | None = None
        """Set where the process is ours to reap."""
        self.state = "starting"
        self.restarts = 0
        self.stopping = False
        self.watch: asyncio.Task[None] | None = None

    def alive(self) -> bool:
        if self.child is not None:
            return self.child.poll() is None
        return self.record is not None and self.record.process() is not None

    def signal(self, number: signal.Signals) -> None:
        """Signal the process, never another one that took its pid."""
        if self.child is not None:
            if self.child.poll() is None:
                self.child.send_signal(number)
        elif self.record is not None and (process := self.record.process()) is not None:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                return

    def remember(self, port: int) -> None:
        """Write `worker.json` in one step."""
        assert self.child is not None
        try:
            process = psutil.Process(self.child.pid)
            born_s, started_at = since_boot_s(process), process.create_time()
        except psutil.Error:
            return
        where = (self.record_host, port, str(self.socket))
        record = WorkerRecord(self.id, self.child.pid, born_s, started_at, *where)
        temporary = self.folder / "worker.json.tmp"
        temporary.write_text(json.dumps(asdict(record)))
        temporary.replace(self.folder / "worker.json")
        self.record = record

    record_host = ""


def read_record(folder: Path) -> WorkerRecord | None:
    """The record in a worker's folder; None where there is none that can be read."""
    try:
        return WorkerRecord(**json.loads((folder / "worker.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def socket_path(folder: Path) -> Path:
    """The worker's socket: in its folder, or, where that path is too long for one, in a private temporary folder."""
    path = folder / "control.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        return path
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    private = Path(tempfile.gettempdir()) / f"modelyard-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    if private.stat().st_uid != os.getuid() or private.is_symlink():
        raise WorkerStartError(f"{private} belongs to somebody else: use a shorter --state-dir")
    return private / f"{name}.sock"


def check_port_free(host: str, port: int, what: str) -> None:
    """Raise PortInUseError where somebody listens on the port; without that, two could share it by SO_REUSEPORT."""
    if port == 0:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise port_error(host, port, what, error) from None


def port_error(host: str, port: int, what: str, error: OSError) -> NotThereError:
    """One sentence for a port that cannot be had."""
    if error.errno == 98:  # EADDRINUSE
        return PortInUseError(f"port {port} on {host} is in use: stop what listens there, or choose another {what}")
    return NotThereError(f"port {port} on {host} cannot be used ({error.strerror}): choose another {what}")


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
    ) -> None:
        self._root = root
        self._segments = segments
        self._on_failure = on_failure
        self._rng = rng
        self._command = tuple(command)
        self._workers: dict[str, Worker] = {}
        self._table: Table | None = None
        self._is_over = False
        self.host = ""
        self.port = 0
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
        wanted = [f"w{index}" for index in range(count)]
        adopted = [name for name in wanted if await self._adopt(name)]
        await self._dismiss_strangers()
        if not adopted:
            check_port_free(host, port, "--port")
        try:
            for name in wanted:
                if name not in adopted:
                    await self._add(name)
        except BaseException:
            await self.stop(0.0)
            raise
        return len(adopted)

    async def resize(self, count: int) -> None:
        """Have `count` workers from now on. Raises WorkerStartError, also where a stop comes first."""
        for worker in [worker for name, worker in self._workers.items() if int(name[1:]) >= count]:
            await self._stop_one(worker, 30.0)
            self._workers.pop(worker.id, None)  # only now: while it drains its segment may grow
        for index in range(count):
            if f"w{index}" not in self._workers:
                await self._add(f"w{index}")

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

    async def _add(self, name: str) -> None:
        """Start one more worker. Raises PortInUseError or WorkerStartError, and then it is not there."""
        if self._is_over:
            raise WorkerStartError(f"worker {name} is not started: the workers are being stopped, so start them anew")
        worker = self._make(name)
        try:
            await self._spawn_first(worker)
        except BaseException:
            await self._stop_one(worker, 0.0)
            self._workers.pop(name, None)
            raise
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
        worker.record_host = self.host
        self._workers[name] = worker
        link.start()
        return worker

    def _greeted(self, hello: Hello) -> None:
        self.generation_seen = max(self.generation_seen, hello.generation)
        worker = self._workers.get(hello.worker)
        if worker is not None and worker.child is not None and worker.child.pid == hello.pid:
            self._ready(worker, hello)

    async def _adopt(self, name: str) -> bool:
        """Take over a running worker where it listens where it should and answers."""
        record = read_record(self._root / name)
        if record is None or record.process() is None or record.host != self.host or self.port not in (0, record.port):
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

    def _spawn(self, worker: Worker) -> None:
        worker.socket.unlink(missing_ok=True)
        worker.link.hello = None
        worker.link.hurry()
        path = worker.folder / "log"
        if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
            path.replace(worker.folder / "log.1")
        arguments = ("--id", worker.id, "--host", self.host, "--port", str(self.port))
        places = ("--socket", str(worker.socket), "--segments", str(self._segments))
        with path.open("ab") as output:
            worker.child = subprocess.Popen(
                [*self._command, *arguments, *places],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=_environment(),
            )
        worker.remember(self.port)

    async def _spawn_first(self, worker: Worker) -> None:
        """Start a worker and wait for its Hello. Raises PortInUseError or WorkerStartError."""
        self._spawn(worker)
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
            await asyncio.sleep(POLL_S)
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

    async def _stop_one(self, worker: Worker, deadline_s: float) -> None:
        worker.stopping = True
        worker.state = "draining"
        if worker.link.connected:
            worker.link.drain(deadline_s)
        else:
            worker.signal(signal.SIGTERM)
        limit = time.monotonic() + deadline_s + CUT_OFF_S  # at its deadline it tells its clients that it cuts them off
        while worker.alive() and time.monotonic() < limit:  # noqa: ASYNC110 - an adopted process gives no event
            await asyncio.sleep(0.02)
        worker.signal(signal.SIGKILL)
        await self._unwatch(worker)
        while worker.alive():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)
        if worker.child is not None:
            worker.child.wait()
        (worker.folder / "worker.json").unlink(missing_ok=True)
        worker.socket.unlink(missing_ok=True)


def last_line(path: Path) -> str:
    """The last line of a log, "" where there is none."""
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def _environment() -> dict[str, str]:
    """What a worker may know of ours: where Python and its modules are, nothing secret."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
    ours = {name: os.environ[name] for name in kept if name in os.environ}
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, ours.get("PYTHONPATH", "").split(os.pathsep))]
    return ours | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
