"""The socket on which clients arrive, passed from one worker to the next.

Owns: making it, giving it away over a Unix socket of its own, taking it over. Never: accepting clients.

All workers of a yard accept on one listening socket. Its queue of clients whom nobody has accepted yet lives as long
as any of them does: a worker that stops, is replaced or is killed takes nobody down with it. (With a socket each, on a
port shared by SO_REUSEPORT, the kernel resets what waits in the queue of one that closes.)
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Final

TAKE_TIMEOUT_S: Final = 5.0
BACKLOG: Final = 16


def bind(host: str, port: int) -> socket.socket:
    """A socket, not listening yet. Raises OSError.

    SO_REUSEPORT is for two workers that both died and are both started again: neither finds the other's socket.
    """
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


def handover_path(control: Path) -> Path:
    """Where a worker gives its listening socket away: beside the socket on which the control plane speaks to it."""
    return control.with_suffix(".fd")


def take(path: Path) -> socket.socket:
    """The listening socket of the worker that gives it away at `path`. Blocking. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as giver:
        giver.settimeout(TAKE_TIMEOUT_S)
        giver.connect(str(path))
        _, descriptors, _, _ = socket.recv_fds(giver, 1, 1)
    if not descriptors:
        raise ConnectionError(f"the worker at {path} gave no listening socket")
    listener = socket.socket(fileno=descriptors[0])
    listener.setblocking(False)
    return listener


class Handover:
    """Gives `listener` to whoever of this user connects at `path`."""

    def __init__(self, path: Path, listener: socket.socket) -> None:
        self._path = path
        self._listener = listener
        self._door = socket.socket(socket.AF_UNIX)

    def start(self) -> None:
        """Give from now on, until `close`."""
        self._path.unlink(missing_ok=True)
        self._door.bind(str(self._path))
        self._path.chmod(0o600)
        self._door.listen(BACKLOG)
        self._door.setblocking(False)
        asyncio.get_running_loop().add_reader(self._door, self._give)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._door)
        self._door.close()
        self._path.unlink(missing_ok=True)

    def _give(self) -> None:
        with contextlib.suppress(OSError):  # a taker that has gone again
            taker, _ = self._door.accept()
            with taker:
                socket.send_fds(taker, [b"l"], [self._listener.fileno()])
