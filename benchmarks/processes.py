"""Processes under a benchmark: started on one core, ready at a port, ended; and what they used, from /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
START_S = 90.0


def process_tree(pid: int) -> list[int]:
    """`pid` and its descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found = [pid]
    for candidate in found:
        found += [child for child, parent in parents.items() if parent == candidate]
    return found


def command_line(pid: int) -> str:
    """Its arguments with NULs between them; "" where it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def router_workers(pid: int) -> list[int]:
    """The router workers among the descendants of a yard."""
    return [one for one in process_tree(pid) if "serving.router.worker" in command_line(one)]


def cpu_s(pids: Sequence[int]) -> float:
    """CPU time of processes so far: user and system, of all their threads."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


def resident_mb(pids: Sequence[int]) -> float:
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path, timeout_s: float = START_S) -> None:
    """Until something listens. Raises SystemExit with the log's end where nothing ever does."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"it ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.1)
    raise SystemExit(f"nothing listens on port {port} after {timeout_s:.0f} s:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def running(
    command: Sequence[str], core: int, port: int, log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process on one core, ready at `port`; ended by SIGTERM, then, with all its descendants, by SIGKILL.

    Raises SystemExit where something else listens there already: it would be measured instead.
    """
    with contextlib.suppress(ConnectionError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        raise SystemExit(f"port {port} is in use: stop what listens there")
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    try:
        wait_for(port, process, log)
        yield process
    finally:
        pids = process_tree(process.pid)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
