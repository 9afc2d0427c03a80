"""A router worker: `python -m serving.router.worker --id w0 --host H --port P --socket PATH --segments DIR`.

With `--take PATH` it accepts clients on the listening socket of another worker (`listeners`) instead of its own.

Owns: the process (signals, the listening socket, periodic work) and its end. Never: dying with the control plane.

Exit status: 0 after a drain; 4 where the port cannot be had.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import gc
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop

from serving.router.account import SegmentWriter
from serving.router.control_link import ControlLink
from serving.router.counters import Counters, CountersError
from serving.router.http1 import Client
from serving.router.listeners import Handover, bind, handover_path, take
from serving.router.protocol import Hello, Stats, Up
from serving.router.router import Router
from serving.router.sampling import Spool
from serving.router.table import Table
from serving.router.tls import HANDSHAKE_TIMEOUT_S, SHUTDOWN_TIMEOUT_S, Certificate, TlsError

SWEEP_S: Final = 0.1
STATS_S: Final = 1.0
PORT_ERRORS: Final = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES})
DRAIN_S: Final = 30.0
FLUSH_S: Final = 0.5
"""How long clients that are cut off have to read why."""
BACKLOG: Final = 4096
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Worker:
    """One worker process, from its first listening socket to its last record."""

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        control_path: Path,
        segments: Path,
        *,
        taken: Path | None = None,
        counters: Path | None = None,
        certificate: Certificate | None = None,
        samples: Path | None = None,
    ) -> None:
        self._name = name
        self._host = host
        self._port = port
        self._control_path = control_path
        self._segments_folder = segments
        self._taken = taken
        self._counters = counters
        self._samples_folder = samples
        self._certificate = certificate
        self._started_at = time.time()
        self._stop = asyncio.Event()
        self._has_table = asyncio.Event()
        """Set by the first table. Only then do we accept clients: one that cannot route yet would take them from
        workers that can."""
        self._drain_s = DRAIN_S
        self._replaced = False
        self._patience: asyncio.Timeout | None = None
        self._loop_lag_s = 0.0

    async def run(self) -> None:
        """Serve until told to drain, then finish what is in flight, for at most the drain's deadline."""
        loop = asyncio.get_running_loop()
        self._segments = SegmentWriter(
            self._segments_folder, self._name, now_ns=time.time_ns, call_later=loop.call_later
        )
        self._spool = None
        if self._samples_folder is not None:
            self._spool = Spool(self._samples_folder, self._name, now_ns=time.time_ns, call_later=loop.call_later)
        self._router = Router(
            self._name,
            loop,
            self._segments,
            now=time.monotonic,
            wall=time.time,
            rng=random.Random(),  # noqa: S311 - buckets, not secrets
            report=self._report,
            counters=_counters(self._counters),
            spool=self._spool,
        )
        self._listener = bind(self._host, self._port) if self._taken is None else take(self._taken)
        self._port = self._listener.getsockname()[1]
        self._link = ControlLink(
            self._control_path, hello=self._hello, publish=self._publish, drain=self._begin_drain, stats=self._stats
        )
        await self._link.start()
        handover = Handover(handover_path(self._control_path), self._listener)
        handover.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._begin_drain, DRAIN_S, False)
        periodic = loop.create_task(self._periodic())
        gc.collect()
        gc.freeze()  # what start-up made stays: collections need not look at it again
        gc.set_threshold(20_000, 20, 20)
        server: asyncio.AbstractServer | None = None
        try:
            await _first(self._stop, self._has_table)
            if not self._stop.is_set():
                server = await self._serve(loop)
            await self._stop.wait()
            if server is not None:
                server.close()
            await self._finish()
        finally:
            periodic.cancel()
            handover.close()
            self._listener.close()
            self._segments.close()
            if self._spool is not None:
                self._spool.flush()
            self._link.report(self._stats())
            self._link.close()

    async def _serve(self, loop: asyncio.AbstractEventLoop) -> asyncio.AbstractServer:
        """Accept clients, by TLS where there is a certificate."""
        secure: dict[str, Any] = {}
        if self._certificate is not None:
            secure = {
                "ssl": self._certificate.context,
                "ssl_handshake_timeout": HANDSHAKE_TIMEOUT_S,
                "ssl_shutdown_timeout": SHUTDOWN_TIMEOUT_S,
            }
        return await loop.create_server(lambda: Client(self._router), sock=self._listener, backlog=BACKLOG, **secure)

    async def _finish(self) -> None:
        """Answer what is in flight, within the deadline; then cut it off and say so."""
        self._router.drain(replaced=self._replaced)
        try:
            async with asyncio.timeout(self._drain_s) as self._patience:
                await self._router.idle.wait()
        except TimeoutError:
            self._router.cut_off()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_S):
                    await self._router.idle.wait()

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
                if self._certificate is not None:
                    self._certificate.refresh()
                self._link.report(self._stats())

    def _report(self, message: Up) -> None:
        self._link.report(message)

    def _publish(self, table: Table) -> Up:
        applied = self._router.publish(table)
        if not self._has_table.is_set():
            self._listener.listen(BACKLOG)  # before Applied is said: from then on connections are welcome
            self._has_table.set()
        return applied

    def _begin_drain(self, deadline_s: float, replaced: bool) -> None:
        """Drain; told again while it drains, only ever more quickly."""
        if self._patience is not None:
            sooner = asyncio.get_running_loop().time() + deadline_s
            if sooner < (self._patience.when() or sooner) and not self._patience.expired():
                self._patience.reschedule(sooner)
            self._router.drain(replaced=replaced and self._replaced)
            return
        self._drain_s = deadline_s
        self._replaced = replaced
        self._stop.set()

    def _stats(self) -> Stats:
        lag, self._loop_lag_s = self._loop_lag_s, 0.0
        stats = self._router.stats(resident_bytes(), lag)
        if self._certificate is None or not self._certificate.problem:
            return stats
        return msgspec.structs.replace(stats, tls_problem=self._certificate.problem)

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


def _counters(path: Path | None) -> Counters | None:
    """The counters in the file; None where there is none or it cannot be used: then this worker counts alone."""
    if path is None:
        return None
    try:
        return Counters.open(path)
    except (OSError, CountersError) as error:
        sys.stderr.write(f"limits are counted by this worker alone: {path} cannot be used ({error})\n")
        return None


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


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="serving.router.worker", description=__doc__)
    parser.add_argument("--id", required=True, help="the worker's name, e.g. w0")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--socket", type=Path, required=True, help="where the control plane reaches this worker")
    parser.add_argument("--take", type=Path, help="where another worker gives its listening socket away")
    parser.add_argument("--counters", type=Path, help="the file in which workers of this machine count together")
    parser.add_argument("--samples", type=Path, help="the folder for sampled requests and feedback")
    parser.add_argument("--tls-certificate", type=Path, help="speak HTTPS with this certificate chain (PEM)")
    parser.add_argument("--tls-key", type=Path, help="the certificate's private key (PEM)")
    parser.add_argument("--segments", type=Path, required=True, help="the folder for records of finished requests")
    options = parser.parse_args()
    places = (options.socket, options.segments)
    shared = {"taken": options.take, "counters": options.counters, "samples": options.samples}
    try:
        secure = Certificate(options.tls_certificate, options.tls_key) if options.tls_certificate else None
    except TlsError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
    worker = Worker(options.id, options.host, options.port, *places, **shared, certificate=secure)
    try:
        uvloop.run(worker.run())
    except OSError as error:
        if error.errno not in PORT_ERRORS:
            sys.stderr.write(f"the router worker cannot start: {error}\n")
            raise SystemExit(1) from None
        sys.stderr.write(
            f"the router cannot serve on {options.host}:{options.port}: {error.strerror or error}; "
            "stop what holds the port or choose another with --port\n"
        )
        raise SystemExit(4) from None


if __name__ == "__main__":
    main()
