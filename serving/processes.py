"""Which process a pid means: the one that was written down, or another one that has its pid by now; and when it ends.

Owns: how a process is recognised and waited for. Never: starting, signalling or ending one.

A process is recognised by its pid and the time from the machine's boot to its start. The time of day would not do: it
moves when the clock is set, and every running process would look like another one.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import Final

import psutil

APART_S: Final = 0.05
"""How far two readings of one process's start may be apart."""
BLIND_S: Final = 0.2
"""A wait for a process that the kernel does not tell of."""


def since_boot_s(process: psutil.Process) -> float:
    """Seconds from the machine's boot to the start of the process. Raises psutil.Error."""
    return float(process.create_time() - psutil.boot_time())


def recognised(pid: int, born_s: float) -> psutil.Process | None:
    """The process with this pid, if it started `born_s` after boot and is no zombie."""
    try:
        process = psutil.Process(pid)
        same = abs(since_boot_s(process) - born_s) < APART_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


async def wait_for_end(pid: int, timeout_s: float) -> None:
    """Return in the moment in which the process ends, or after `timeout_s`; sooner where the kernel cannot tell."""
    try:
        watched = os.pidfd_open(pid)
    except (OSError, ValueError):
        await asyncio.sleep(min(BLIND_S, timeout_s))
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(watched, ended.set)
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), timeout_s)
    finally:
        loop.remove_reader(watched)
        os.close(watched)
