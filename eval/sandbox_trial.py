"""Does every lock of the sandbox really hold on this machine? Tried once, before any model's code is run.

Owns: the trial programs, and the refusal that names the lock that did not hold. Never: trusting a lock because a call
that closes it succeeded.
"""

from __future__ import annotations

import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from eval.sandbox import REMEDY, Sandbox, SandboxError
from eval.scorers.base import Execution

MEMORY_BYTES: Final = 256 * 1024 * 1024

_ESCAPES: Final = """
import ctypes, os, resource, socket

def holds(name, *attempts):
    for attempt in attempts:
        try:
            attempt()
        except (OSError, MemoryError, RuntimeError, ValueError):
            continue
        raise SystemError(name)

def allocate():
    bytearray(%(memory)d)

def fork():
    if os.fork() == 0:
        os._exit(0)

def thread():
    import threading
    threading.Thread(target=print).start()

def fill():
    with open("large", "wb", buffering=0) as file:
        for _ in range(64):
            if file.write(bytes(1 << 20)) < 1 << 20:
                raise OSError

def environment():
    if set(os.environ) - {"HOME", "TMPDIR", "PATH", "PYTHONHASHSEED", "PYTHONUTF8", "LC_CTYPE"}:
        return
    open("/proc/%%d/environ" %% os.getppid(), "rb").read()

def descriptors():
    held = [number for number in range(3, 64) if is_open(number)]
    if len(held) < 2:  # the one that the report goes to
        raise OSError

def is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True

holds("the network", lambda: socket.create_connection(("127.0.0.1", %(port)d), 2),
      lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), lambda: socket.socket(socket.AF_UNIX))
holds("other files", lambda: open(%(secret)r).read(), lambda: open(%(secret)r, "a"), lambda: os.listdir(%(folder)r),
      lambda: open(%(folder)r + "/new", "w"), lambda: os.unlink(%(secret)r), lambda: os.chmod(%(secret)r, 0o666))
holds("processes", fork, thread, lambda: os.execv("/bin/true", ["true"]))
holds("other processes", lambda: os.kill(os.getppid(), 0), lambda: os.kill(-1, 0))
holds("memory", allocate)
holds("limits", lambda: resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2))
holds("file sizes", fill)
holds("the environment", environment)
holds("open files", descriptors)
with open("own", "w") as file:
    file.write("kept")
assert open("own").read() == "kept"
"""
_WORKS: Final = "import asyncio, collections, heapq, math, random, re, typing\nassert math.sqrt(4) == 2"


def require() -> Sandbox:
    """The sandbox, every lock of it tried; takes about two seconds. Raises SandboxError naming what does not hold."""
    sandbox = Sandbox()
    with (
        tempfile.TemporaryDirectory(prefix="modelyard-trial-") as name,
        socket.create_server(("127.0.0.1", 0)) as open_,
    ):
        folder = Path(name)
        folder.chmod(0o777)  # open to all, so that only the sandbox keeps it closed
        secret = folder / "secret"
        secret.write_text("secret")
        secret.chmod(0o666)
        told = {
            "memory": 2 * MEMORY_BYTES,
            "port": open_.getsockname()[1],
            "secret": str(secret),
            "folder": str(folder),
        }
        with ThreadPoolExecutor(4) as pool:
            works = pool.submit(_run, sandbox, _WORKS)
            escapes = pool.submit(_run, sandbox, _ESCAPES % told)
            waits = pool.submit(_run, sandbox, "import time; time.sleep(60)", wall_s=0.2)
            burns = pool.submit(_run, sandbox, "while True: pass", cpu_s=1)
    _expect(works.result().passed, f"a plain program does not run ({works.result().reason})")
    _expect(escapes.result().passed, f"the lock around {escapes.result().reason.removeprefix('SystemError: ')} is open")
    _expect("ran for more than" in waits.result().reason, "a program that waits is not stopped")
    _expect("processor time" in burns.result().reason, "a program that computes without end is not stopped")
    return sandbox


def _run(sandbox: Sandbox, program: str, wall_s: float = 30.0, cpu_s: int | None = None) -> Execution:
    return sandbox.run(program, wall_s=wall_s, memory_bytes=MEMORY_BYTES, cpu_s=cpu_s)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SandboxError(f"the sandbox does not hold on this machine: {otherwise}; {REMEDY}")
