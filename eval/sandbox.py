"""Runs Python that a model wrote, so that it can do no harm, and refuses where it cannot promise that.

Owns: starting and ending the process, its limits, and the trial of each limit on this machine. Never: running a program
without every lock, or in this process.

The locks, closed by eval/sandbox_child.py in the process itself before the program is looked at:

    network      no sockets (seccomp), and a network namespace of its own where the kernel permits one
    files        reads Python's standard library, writes one private folder, which is removed (Landlock)
    processes    none, and no threads; no signals (seccomp); dies with the process that started it
    memory, CPU  resource limits; wall time and the folder's size are watched from outside
    secrets      no environment, no inherited descriptors, no /proc; what it prints goes nowhere

A program can still fake its own result, since its tests run in its own process: it would have to set out to.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from eval import sandbox_filter
from eval.scorers.base import Execution
from registry.terminal import UserError

REPORT_BYTES_MAX: Final = 16 * 1024
REASON_CHARACTERS: Final = 300
START_MAX_S: Final = 30.0
"""For the process to start and lock itself in, on a busy machine."""
FOLDER_BYTES_MAX: Final = 64 * 1024 * 1024
FOLDER_FILES_MAX: Final = 256
FILE_BYTES_MAX: Final = 8 * 1024 * 1024
WATCH_EVERY_S: Final = 0.05
_CHILD: Final = Path(__file__).with_name("sandbox_child.py")
REMEDY: Final = (
    "python_tests runs a model's code only where it can be locked in: on Linux 5.13 or later (x86_64, aarch64) with "
    "Landlock and seccomp, which Docker's and Podman's default profiles permit"
)


class SandboxError(UserError):
    """This machine cannot lock a program in; the message says what is missing, and what would have it."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """What a process left behind."""

    report: bytes
    broken: str
    """The limit that was broken, as watched from outside; "" where none was."""
    code: int
    wall_s: float
    """Since it was locked in."""


class Sandbox:
    """Runs programs one at a time per call; calls from several threads run side by side."""

    def __init__(self) -> None:
        """Raises SandboxError on a platform that has none of this. `require` is what others should call."""
        machine = platform.machine()
        if sys.platform != "linux" or machine not in sandbox_filter.ARCHITECTURES:
            raise SandboxError(f"there is no sandbox on {platform.system()} {machine}: {REMEDY}")
        self._filter = sandbox_filter.program(machine).hex()

    def run(self, program: str, *, wall_s: float, memory_bytes: int, cpu_s: int | None = None) -> Execution:
        """Run `program` to its end or its limits. `cpu_s`: processor seconds, by default the wall time, rounded up.

        Raises SandboxError where a lock does not close: then it has not run.
        """
        processor_s = cpu_s if cpu_s is not None else int(-(-wall_s // 1))
        limits = {
            "RLIMIT_CPU": processor_s,
            "RLIMIT_AS": memory_bytes,
            "RLIMIT_FSIZE": FILE_BYTES_MAX,
            "RLIMIT_NOFILE": 32,
            "RLIMIT_CORE": 0,
            "RLIMIT_NPROC": 0,
        }
        nonce = secrets.token_hex(16)
        with tempfile.TemporaryDirectory(prefix="modelyard-sandbox-") as folder:
            told = {"program": program, "limits": limits, "filter": self._filter, "folder": folder, "nonce": nonce}
            ended = _process(told, folder, wall_s)
        locked, *rest = ended.report.partition(b"\n")[::2]
        first = _read(locked)
        if not first.get("locked"):
            what = first.get("refused") or f"the process for it ended with {ended.code}"
            raise SandboxError(f"a program cannot be locked in here: {what}; {REMEDY}")
        last = _read(rest[0])
        passed = not ended.broken and last.get("nonce") == nonce and last.get("passed") is True
        reason = "" if passed else ended.broken or str(last.get("reason", "")) or _of_code(ended.code, processor_s)
        return Execution(passed=passed, reason=reason[:REASON_CHARACTERS], wall_s=ended.wall_s)


def _process(told: Mapping[str, Any], folder: str, wall_s: float) -> _Ended:
    """Start the child, watch it, end it with all its process group. What it prints goes nowhere."""
    reading, writing = os.pipe()
    environment = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "HOME": folder, "TMPDIR": folder, "PATH": ""}
    try:
        with tempfile.TemporaryFile() as spec:
            spec.write(json.dumps({**told, "report": writing, "parent": os.getpid()}).encode())
            spec.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-B", "-P", "-s", "-S", str(_CHILD)],
                stdin=spec,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd=folder,
                pass_fds=(writing,),
                start_new_session=True,
            )
        os.close(writing)
        writing = -1
        with process:
            try:
                report, broken, locked_at = _watch(reading, Path(folder), wall_s)
            finally:  # before it is waited for: until then its number is nobody else's
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    return _Ended(report, broken, code, time.monotonic() - locked_at)


def _watch(reading: int, folder: Path, wall_s: float) -> tuple[bytes, str, float]:
    """Read the report until it is whole or closed, or a limit is broken; and when the program was locked in."""
    report = bytearray()
    locked_at = time.monotonic()
    until = locked_at + START_MAX_S
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while True:
            left_s = until - time.monotonic()
            if left_s <= 0:
                return bytes(report), f"it ran for more than {wall_s:g} s", locked_at
            if selector.select(min(left_s, WATCH_EVERY_S)):
                data = os.read(reading, REPORT_BYTES_MAX)
                if not data:
                    return bytes(report), "", locked_at
                if not report:
                    locked_at = time.monotonic()
                    until = locked_at + wall_s
                report += data
                if len(report) > REPORT_BYTES_MAX:
                    return bytes(report), "it wrote to the sandbox's own pipe", locked_at
            if _too_full(folder):
                broken = f"it wrote more than {FOLDER_BYTES_MAX // 2**20} MiB, or {FOLDER_FILES_MAX} files"
                return bytes(report), broken, locked_at


def _too_full(folder: Path) -> bool:
    total = 0
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries, start=1):
            try:
                total += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:  # removed meanwhile
                continue
            if count > FOLDER_FILES_MAX or total > FOLDER_BYTES_MAX:
                return True
    return False


def _read(report: bytes) -> dict[str, Any]:
    """The child's report; {} where there is none that can be read (the program may have written to it)."""
    try:
        value = json.loads(report)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _of_code(code: int, cpu_s: int) -> str:
    """Why a process that reported nothing has ended."""
    if code in {-signal.SIGXCPU, -signal.SIGKILL}:
        return f"it used more than {cpu_s} s of processor time, or was killed"
    if code < 0:
        return f"it ended with {signal.Signals(-code).name}"
    return "it ended itself before its tests were through"
