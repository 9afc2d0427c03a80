"""The worker's end of the Unix socket on which the control plane speaks to it.

Owns: that socket; one control plane at a time, the newest wins. Never: needing it. A worker without a control plane
goes on serving by its last table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

import msgspec

from serving.router.protocol import Ask, Drain, Framer, Hello, Publish, Stats, Up, decode_down, encode
from serving.router.table import Table

UNSENT_BYTES_MAX: Final = 1024 * 1024
"""A control plane that does not read for so long is dropped: it may connect again."""


class ControlLink:
    """Listens on `path` and hands messages to the callbacks."""

    def __init__(
        self,
        path: Path,
        *,
        hello: Callable[[], Hello],
        publish: Callable[[Table], Up],
        drain: Callable[[float, bool], None],
        stats: Callable[[], Stats],
    ) -> None:
        self._path = path
        self.hello = hello
        self.publish = publish
        self.drain = drain
        self.stats = stats
        self._current: _Peer | None = None
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Listen, in place of whatever an earlier process of this worker left at the path."""
        self._path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Peer(self), str(self._path))
        self._path.chmod(0o600)

    def report(self, message: Up) -> None:
        """Send a message to the control plane, where one is connected."""
        if self._current is not None:
            self._current.send(message)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._current is not None:
            self._current.close()
        self._path.unlink(missing_ok=True)

    def connected(self, peer: _Peer) -> None:
        before, self._current = self._current, peer
        if before is not None:
            before.close()

    def disconnected(self, peer: _Peer) -> None:
        if self._current is peer:
            self._current = None


class _Peer(asyncio.Protocol):
    """One connection of a control plane."""

    def __init__(self, link: ControlLink) -> None:
        self._link = link
        self._framer = Framer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._link.connected(self)
        self.send(self._link.hello())

    def data_received(self, data: bytes) -> None:
        try:
            messages = [decode_down(payload) for payload in self._framer.feed(data)]
        except (ValueError, msgspec.MsgspecError):
            self.close()  # not a control plane of this version
            return
        for message in messages:
            if isinstance(message, Publish):
                self.send(self._link.publish(message.table))
            elif isinstance(message, Drain):
                self._link.drain(message.deadline_s, message.replaced)
            elif isinstance(message, Ask):
                self.send(self._link.stats())

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.disconnected(self)

    def send(self, message: Up) -> None:
        if self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            self._transport.abort()
            return
        self._transport.write(encode(message))

    def close(self) -> None:
        self._transport.close()
