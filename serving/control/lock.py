"""One control plane per state directory.

Owns: `yard.lock`. The kernel lets go of it when the process dies, however it dies; no stale lock is ever left.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self

from registry.terminal import UserError


class StateDirBusyError(UserError):
    """Another control plane runs on this state directory."""


class YardLock:
    """Held from `take` to `release`, or to the end of the process. Children do not inherit it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> Self:
        """Take the lock at `path`. Raises StateDirBusyError naming the process that holds it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise StateDirBusyError(
                f"another modelyard (pid {holder}) runs on the state directory {path.parent}: stop it, or give this "
                "one another --state-dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return cls(descriptor)

    def release(self) -> None:
        """Let go. The file stays: removing it would let two processes lock two files of one name."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
