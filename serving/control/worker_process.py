"""One router worker as a process: which it is, how it is told so again, what it may know of ours.

Owns: `worker.json`, names and sockets of workers, signals that never meet another process. Never: when a worker is
started or stopped (the workers module decides).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from registry.terminal import NotThereError
from serving import native
from serving.control.links import WorkerLink
from serving.processes import recognised, since_boot_s

SOCKET_PATH_BYTES_MAX = 100
"""Linux allows 107 bytes in a Unix socket's address."""


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
    tls: tuple[str, ...] = ()
    """The files of its certificate and key; none where it speaks plain HTTP."""

    def process(self) -> psutil.Process | None:
        """The process, if it is this one and alive."""
        return recognised(self.pid, self.born_s)


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

    @property
    def pid(self) -> int:
        """0 while there is no process."""
        if self.child is not None:
            return self.child.pid
        return self.record.pid if self.record is not None else 0

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
        record = WorkerRecord(self.id, self.child.pid, born_s, started_at, *where, tls=self.tls)
        temporary = self.folder / "worker.json.tmp"
        temporary.write_text(json.dumps(asdict(record)))
        temporary.replace(self.folder / "worker.json")
        self.record = record

    record_host = ""
    tls: tuple[str, ...] = ()


def slot_of(name: str) -> int:
    """The place that a worker has among the workers: 0 for `w0` and for `w0b`."""
    return int(name.removeprefix("w").removesuffix("b"))


def successor_of(name: str) -> str:
    """The name of the worker that takes this one's place."""
    return name.removesuffix("b") if name.endswith("b") else f"{name}b"


def read_record(folder: Path) -> WorkerRecord | None:
    """The record in a worker's folder; None where there is none that can be read."""
    try:
        found = json.loads((folder / "worker.json").read_text())
        return WorkerRecord(**found | {"tls": tuple(found.get("tls", ()))})
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


def last_line(path: Path) -> str:
    """The last line of a log, "" where there is none."""
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def environment() -> dict[str, str]:
    """What a worker may know of ours: where Python and its modules are, nothing secret."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
    python = ("PYTHONPATH", "PYTHONHOME", native.SWITCH)
    ours = {name: os.environ[name] for name in (*kept, *python) if name in os.environ}
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, ours.get("PYTHONPATH", "").split(os.pathsep))]
    return ours | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
