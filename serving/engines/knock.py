"""Asks an engine whether it is there: one GET on a connection of its own, of whose answer only the status is read.

Owns: that exchange. Never: what a status means (the probe says), https, answers that matter. Every engine is asked once
a second for as long as it lives: through an HTTP client the same question cost twenty times the CPU.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import cast
from urllib.parse import urlsplit

STATUS_BYTES_MAX = 1024


class Knock(asyncio.Protocol):
    """One connection; `status` is the answer's, or the reason why there is none."""

    def __init__(self, request: bytes) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._request = request
        self._said = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.status.done():
            return
        self._said += data
        if b"\n" in self._said or len(self._said) > STATUS_BYTES_MAX:
            version, _, rest = self._said.partition(b" ")
            if version.startswith(b"HTTP/1.") and rest[:3].isdigit():
                self.status.set_result(int(rest[:3]))
            else:
                self.status.set_exception(OSError("it does not speak HTTP"))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.status.done():
            self.status.set_exception(error or OSError("it closed the connection without an answer"))


def handles(url: str) -> bool:
    """Whether `knock` can ask there: plain http."""
    return url.startswith("http://")


async def knock(url: str, headers: Mapping[str, str], timeout_s: float) -> int:
    """The status of a GET of `url`. Raises OSError (TimeoutError among them) where there is no answer."""
    parts = urlsplit(url)
    lines = {"host": parts.netloc.rpartition("@")[2], "accept": "*/*", "connection": "close"} | {
        name.lower(): value for name, value in headers.items()
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    request = f"GET {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1")
    transport: asyncio.BaseTransport | None = None
    try:
        async with asyncio.timeout(timeout_s):
            transport, asked = await asyncio.get_running_loop().create_connection(
                lambda: Knock(request), parts.hostname or "", parts.port or 80
            )
            return await asked.status
    finally:
        if transport is not None:
            transport.close()
