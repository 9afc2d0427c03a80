"""One worker's control connection: tables down, statistics and failures up.

Owns: the connection over the worker's Unix socket, and connecting again after it was lost. Never: the worker's process
(the workers module has it), building tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from serving.router.protocol import (
    Applied,
    Ask,
    Down,
    Drain,
    Failure,
    Framer,
    Hello,
    Publish,
    Stats,
    Up,
    decode_up,
    encode,
)
from serving.router.table import Table

log = logging.getLogger("modelyard.workers")

RECONNECT_S = 0.05
RECONNECT_MAX_S = 0.5
HURRY_S = 10.0
HURRY_STEP_S = 0.005
"""A worker without a table answers 503, so one that has just started must not wait for it."""
READ_BYTES = 256 * 1024


class WorkerLink:
    """Keeps one connection to a worker while it lives. `start` it, `close` it; everything between may fail and heals.

    On every Hello the last published table goes down again, so a worker that was started anew serves within
    milliseconds.
    """

    def __init__(
        self,
        worker: str,
        socket: Path,
        *,
        on_failure: Callable[[Failure], None],
        on_hello: Callable[[Hello], None],
    ) -> None:
        self.worker = worker
        self.hello: Hello | None = None
        """The last Hello; None before the first one."""
        self.stats: Stats | None = None
        self.connected = False
        self.applied = 0
        """The generation that the worker confirmed last."""
        self._socket = socket
        self._on_failure = on_failure
        self._on_hello = on_hello
        self._hurry_until = 0.0
        self._table: Table | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect now, and whenever the connection is lost."""
        self._task = asyncio.create_task(self._keep_connected(), name=f"link {self.worker}")

    async def close(self) -> None:
        """Give the connection up; the worker goes on serving."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def hurry(self) -> None:
        """The worker is being started: connect to it as soon as it listens."""
        self._hurry_until = time.monotonic() + HURRY_S

    def publish(self, table: Table) -> None:
        """Send the table, now or as soon as there is a connection."""
        self._table = table
        self._send(Publish(table))

    def drain(self, deadline_s: float, *, replaced: bool = False) -> None:
        self._send(Drain(deadline_s, replaced))

    async def wait_hello(self, timeout_s: float) -> Hello | None:
        """The worker's Hello; None where it did not come in time."""
        await self._wait(lambda: self.hello is not None, timeout_s)
        return self.hello

    async def wait_applied(self, generation: int, timeout_s: float) -> bool:
        """Whether the worker confirmed this generation, or a later one, in time."""
        return await self._wait(lambda: self.connected and self.applied >= generation, timeout_s)

    async def ask(self, timeout_s: float) -> Stats | None:
        """Statistics from after this moment; None where they did not come in time."""
        before = self.stats
        self._send(Ask())
        await self._wait(lambda: self.stats is not before, timeout_s)
        return self.stats if self.stats is not before else None

    async def _wait(self, satisfied: Callable[[], bool], timeout_s: float) -> bool:
        async with self._changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(satisfied), timeout_s)
        return satisfied()

    def _send(self, message: Down) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(message))

    async def _keep_connected(self) -> None:
        delay_s = RECONNECT_S
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_unix_connection(str(self._socket))
                delay_s = RECONNECT_S
                await self._converse(reader, writer)
            hurry = time.monotonic() < self._hurry_until
            await asyncio.sleep(HURRY_STEP_S if hurry else delay_s)
            delay_s = RECONNECT_S if hurry else min(delay_s * 2, RECONNECT_MAX_S)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        framer = Framer()
        self._writer = writer
        try:
            while data := await reader.read(READ_BYTES):
                for payload in framer.feed(data):
                    await self._take(decode_up(payload))
        except (ValueError, msgspec.MsgspecError) as error:
            log.warning("worker %s speaks another protocol: %s", self.worker, error)
        finally:
            self._writer = None
            self.connected = False
            self.applied = 0
            writer.close()

    async def _take(self, message: Up) -> None:
        match message:
            case Failure():
                self._on_failure(message)
                return
            case Stats():
                self.stats = message
            case Applied():
                self.applied = message.generation
            case Hello():
                self.hello = message
                self.connected = True
                self.applied = message.generation
                self.stats = None
                self._on_hello(message)
                if self._table is not None:
                    self._send(Publish(self._table))
        async with self._changed:
            self._changed.notify_all()
