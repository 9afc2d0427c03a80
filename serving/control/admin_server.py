"""The admin API's server: uvicorn in the yard's own event loop.

Owns: its socket and its end. Never: signals (the yard has them).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn
from fastapi import FastAPI

from serving.control.worker_process import port_error

GRACE_S = 2
START_TIMEOUT_S = 10.0
TICK_S = 1.0
"""How often the `Date` header is made anew."""


class _Server(uvicorn.Server):
    """uvicorn, which leaves the signals alone and wakes up once a second, not ten times."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._over = asyncio.Event()

    def end(self) -> None:
        """Begin to shut down."""
        self.should_exit = True
        self._over.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), TICK_S)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening socket of our own. Raises PortInUseError or NotThereError, one sentence."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise port_error(host, port, "--admin-port", error) from None
    listener.setblocking(False)
    return listener


class AdminServer:
    """Serves an application on a bound socket from `start` to `stop`."""

    def __init__(self, app: FastAPI, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=GRACE_S, ws="none"
        )
        self._server = _Server(config)
        self._listener = listener
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]), name="admin server")
        async with asyncio.timeout(START_TIMEOUT_S):
            while not self._server.started:
                if self._task.done():
                    await self._task
                    return
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Answer what is being answered, then close."""
        if self._task is not None:
            self._server.end()
            await self._task
            self._task = None
        self._listener.close()
