"""One engine's process: started in a session of its own, recognised again later, ended with all that it started.

Owns: `engines/<replica>/engine.json` and `log`, process groups, signals. Never: deciding when to start or to stop.

What an engine started is found by descent, by the mark in its environment, and by the log that it writes to, also after
it died itself: vLLM's engine core, which holds the GPU's memory, writes its title over its environment and outlives a
server that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
import psutil

from serving.engines.base import Capabilities, Launch, minimal_environment
from serving.processes import recognised, since_boot_s

MARK: Final = "MODELYARD_ENGINE"
"""Environment variable of every engine process and its children: the replica's folder."""
LOGS: Final = ("log", "log.1")
"""An engine's output, and that of the process before it. What an engine still writes to may be either."""
LOG_BYTES_MAX: Final = 4 * 1024 * 1024
LOG_BYTES_KEPT: Final = 1024 * 1024
_POLL_S: Final = 0.02


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`engine.json`: which process runs a replica, and as what it was started."""

    id: str
    pid: int
    born_s: float
    """From the machine's boot to its start: with the pid it names the process."""
    host: str
    port: int
    digest: str
    fingerprint: str
    started_at: float
    """Unix seconds."""
    restarts: int = 0
    capabilities: Capabilities | None = None
    """None until it was probed."""


class EngineProcess:
    """The process of one replica, ours or adopted."""

    def __init__(self, folder: Path, record: EngineRecord, child: subprocess.Popen[bytes] | None) -> None:
        self.folder = folder
        self.record = record
        self._child = child
        self._family: list[psutil.Process] = []

    @property
    def pid(self) -> int:
        return self.record.pid

    @property
    def exit_status(self) -> int | None:
        """The exit status where it is known: only of a child of ours that ended."""
        return self._child.returncode if self._child is not None else None

    def alive(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        return recognised(self.record.pid, self.record.born_s) is not None

    def remember(self, capabilities: Capabilities | None) -> None:
        """Write `engine.json` in one step, with what the engine can do."""
        self.record = msgspec.structs.replace(self.record, capabilities=capabilities)
        write_record(self.folder, self.record)

    def usage(self, *, refresh: bool) -> tuple[int, float]:
        """Resident bytes and CPU seconds of the process and what it started; `refresh` looks for new children."""
        if refresh or not self._family:
            leader = recognised(self.record.pid, self.record.born_s)
            self._family = []
            with contextlib.suppress(psutil.Error):
                self._family = [leader, *leader.children(recursive=True)] if leader is not None else []
        resident, seconds = 0, 0.0
        for process in self._family:
            with contextlib.suppress(psutil.Error), process.oneshot():
                times = process.cpu_times()
                resident += process.memory_info().rss
                seconds += times.user + times.system
        return resident, seconds

    async def end(self, deadline_s: float) -> None:
        """SIGTERM, then SIGKILL after the deadline, to all that belongs to the engine; returns when it is gone."""
        await sweep(self.folder, self.record, deadline_s)
        while self.alive():  # noqa: ASYNC110 - reaps it, where it is a child of ours
            await asyncio.sleep(_POLL_S)


def start(folder: Path, launch: Launch, *, replica: str, digest: str, fingerprint: str, restarts: int) -> EngineProcess:
    """Start an engine: its own session, standard input from nowhere, output to a fresh `log`. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, text in launch.files.items():
        path.write_text(text, encoding="utf-8")
    log = folder / "log"
    if log.exists():
        log.replace(folder / "log.1")
    env = minimal_environment(os.environ) | dict(launch.env) | {MARK: str(folder)}
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = subprocess.Popen(
            launch.argv,
            cwd=launch.cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    try:
        record = EngineRecord(
            id=replica,
            pid=child.pid,
            born_s=since_boot_s(psutil.Process(child.pid)),
            host=launch.host,
            port=launch.port,
            digest=digest,
            fingerprint=fingerprint,
            started_at=time.time(),
            restarts=restarts,
        )
        write_record(folder, record)
    except BaseException:  # a process that nobody could find again
        child.kill()
        child.wait()
        raise
    return EngineProcess(folder, record, child)


def recorded(folder: Path) -> EngineRecord | None:
    """The record in a replica's folder; None where there is none that can be read."""
    try:
        return msgspec.json.decode((folder / "engine.json").read_bytes(), type=EngineRecord)
    except (OSError, msgspec.MsgspecError):
        return None


def write_record(folder: Path, record: EngineRecord) -> None:
    temporary = folder / "engine.json.tmp"
    temporary.write_bytes(msgspec.json.encode(record))
    temporary.replace(folder / "engine.json")


def family(folder: Path, record: EngineRecord | None) -> list[psutil.Process]:
    """Everything alive that belongs to the replica: its engine, whatever that started, and what carries its mark."""
    found: dict[int, psutil.Process] = {}
    leader = recognised(record.pid, record.born_s) if record is not None else None
    if leader is not None:
        with contextlib.suppress(psutil.Error):
            found = {process.pid: process for process in (leader, *leader.children(recursive=True))}
    real = folder.resolve()
    for process in psutil.process_iter():
        if process.pid not in found and folder_of(process) == real:
            found[process.pid] = process
    return _living(found.values())


def folder_of(process: psutil.Process) -> Path | None:
    """The replica's folder that a process belongs to by its mark or by where its output goes, without symbolic links;
    None where it has neither. Where output goes says little alone: whoever asks knows which folders are replicas'."""
    with contextlib.suppress(psutil.Error, OSError):
        if mark := process.environ().get(MARK):
            return Path(mark).resolve()
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            output = Path(f"/proc/{process.pid}/fd/{descriptor}").readlink()
            if output.name.removesuffix(" (deleted)") in LOGS:
                return output.parent
    return None


async def sweep(folder: Path, record: EngineRecord | None, deadline_s: float) -> None:
    """End everything that belongs to a replica, with or without a record of its engine, and the record."""
    members = await asyncio.to_thread(family, folder, record)
    _signal(members, signal.SIGTERM)
    until = time.monotonic() + deadline_s
    while time.monotonic() < until and _living(members):  # noqa: ASYNC110 - nobody tells of other people's children
        await asyncio.sleep(_POLL_S)
    members = list({*_living(members), *await asyncio.to_thread(family, folder, record)})
    _signal(members, signal.SIGKILL)
    while _living(members):  # noqa: ASYNC110 - as above
        await asyncio.sleep(_POLL_S)
    with contextlib.suppress(FileNotFoundError):
        (folder / "engine.json").unlink()


def marked(root: Path) -> set[Path]:
    """The folders below `root` of replicas of which something runs."""
    found, real = set(), root.resolve()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            folder = folder_of(process)
            if folder is not None and folder.is_relative_to(real) and process.status() != psutil.STATUS_ZOMBIE:
                found.add(root / folder.relative_to(real))
    return found


def tail(folder: Path, lines: int) -> list[str]:
    """The last lines of the replica's log, of the log before it where this one is empty."""
    for name in LOGS:
        with contextlib.suppress(OSError), (folder / name).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 64 * 1024))
            found = file.read().decode("utf-8", "replace").splitlines()
            if found:
                return found[-lines:]
    return []


def bound_log(folder: Path) -> None:
    """Cut a log that grew too long to its end. The engine goes on appending to the same file."""
    log = folder / "log"
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size <= LOG_BYTES_MAX:
            return
        with log.open("rb") as file:
            file.seek(-LOG_BYTES_KEPT, os.SEEK_END)
            kept = file.read()
        (folder / "log.1").write_bytes(kept)
        os.truncate(log, 0)


def _living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    living = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
    return living


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
