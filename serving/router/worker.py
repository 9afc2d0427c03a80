"""A router worker: `python -m serving.router.worker --id w0 --host H --port P --socket PATH --segments DIR`.

Owns: the process (signals, the listening socket, periodic work) and its end. Never: dying with the control plane.

Exit status: 0 after a drain; 4 where the port cannot be had.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Final

import uvloop

from serving.router.account import SegmentWriter
from serving.router.control_link import ControlLink
from serving.router.http1 import Client
from serving.router.protocol import Hello, Stats, Up
from serving.router.router import Router
from serving.router.table import Table

SWEEP_S: Final = 0.1
STATS_S: Final = 1.0
DRAIN_S: Final = 30.0
BACKLOG: Final = 4096
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Worker:
    """One worker process, from its first listening socket to its last record."""

    def __init__(self, name: str, host: str, port: int, control_path: Path, segments: Path) -> None:
        self._name = name
        self._host = host
        self._port = port
        self._control_path = control_path
        self._segments_folder = segments
        self._started_at = time.time()
        self._stop = asyncio.Event()
        self._has_table = asyncio.Event()
        """Set by the first table. Only then do we listen: among workers that share a port, one that cannot route yet
        would take connections from those that can."""
        self._drain_s = DRAIN_S
        self._loop_lag_s = 0.0

    async def run(self) -> None:
        """Serve until told to drain, then finish what is in flight, for at most the drain's deadline."""
        loop = asyncio.get_running_loop()
        self._segments = SegmentWriter(
            self._segments_folder, self._name, now_ns=time.time_ns, call_later=loop.call_later
        )
        self._router = Router(
            self._name,
            loop,
            self._segments,
            now=time.monotonic,
            wall=time.time,
            rng=random.Random(),  # noqa: S311 - buckets, not secrets
            report=self._report,
        )
        self._listener = _bind(self._host, self._port)
        self._port = self._listener.getsockname()[1]
        self._link = ControlLink(
            self._control_path, hello=self._hello, publish=self._publish, drain=self._begin_drain, stats=self._stats
        )
        await self._link.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._begin_drain, DRAIN_S)
        periodic = loop.create_task(self._periodic())
        gc.collect()
        gc.freeze()  # what start-up made stays: collections need not look at it again
        gc.set_threshold(20_000, 20, 20)
        server: asyncio.AbstractServer | None = None
        try:
            await _first(self._stop, self._has_table)
            if not self._stop.is_set():
                server = await loop.create_server(lambda: Client(self._router), sock=self._listener, backlog=BACKLOG)
            await self._stop.wait()
            if server is not None:
                server.close()
            self._router.drain()
            try:
                async with asyncio.timeout(self._drain_s):
                    await self._router.idle.wait()
                await asyncio.sleep(0)
            except TimeoutError:
                self._router.cut_off()
        finally:
            periodic.cancel()
            self._listener.close()
            self._segments.close()
            self._link.report(self._stats())
            self._link.close()

    async def _periodic(self) -> None:
        """Deadlines ten times a second, Stats once."""
        next_stats = time.monotonic() + STATS_S
        while True:
            before = time.monotonic()
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            self._loop_lag_s = max(self._loop_lag_s, now - before - SWEEP_S)
            self._router.sweep(now)
            if now >= next_stats:
                next_stats = now + STATS_S
                self._link.report(self._stats())

    def _report(self, message: Up) -> None:
        self._link.report(message)

    def _publish(self, table: Table) -> Up:
        applied = self._router.publish(table)
        if not self._has_table.is_set():
            self._listener.listen(BACKLOG)  # before Applied is said: from then on connections are welcome
            self._has_table.set()
        return applied

    def _begin_drain(self, deadline_s: float) -> None:
        self._drain_s = deadline_s
        self._stop.set()

    def _stats(self) -> Stats:
        lag, self._loop_lag_s = self._loop_lag_s, 0.0
        return self._router.stats(resident_bytes(), lag)

    def _hello(self) -> Hello:
        return Hello(
            worker=self._name,
            pid=os.getpid(),
            started_at=self._started_at,
            host=self._host,
            port=self._port,
            generation=self._router.snapshot.generation,
            segment=self._segments.segment,
        )


def resident_bytes() -> int:
    """Resident memory of this process, from /proc; 0 where there is none."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError):
        return 0


async def _first(*events: asyncio.Event) -> None:
    """Wait until one of the events is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _bind(host: str, port: int) -> socket.socket:
    """A socket, not listening yet, on a port that other workers of this yard may share. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="serving.router.worker", description=__doc__)
    parser.add_argument("--id", required=True, help="the worker's name, e.g. w0")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--socket", type=Path, required=True, help="where the control plane reaches this worker")
    parser.add_argument("--segments", type=Path, required=True, help="the folder for records of finished requests")
    options = parser.parse_args()
    worker = Worker(options.id, options.host, options.port, options.socket, options.segments)
    try:
        uvloop.run(worker.run())
    except OSError as error:
        sys.stderr.write(
            f"the router cannot serve on {options.host}:{options.port}: {error.strerror or error}; "
            "stop what holds the port or choose another with --port\n"
        )
        raise SystemExit(4) from None


if __name__ == "__main__":
    main()
