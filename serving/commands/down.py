"""`modelyard down`: stop a yard, and whatever a dead one left running.

Owns: the order. Never: a process that is not this state directory's: pid and creation time must both be the recorded
ones, or the process carries the engines' mark.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from registry import terminal
from registry.state import StateDir
from registry.terminal import NotThereError
from serving.commands.client import shown
from serving.commands.options import Json, StateDirectory, application

if TYPE_CHECKING:
    import psutil

    from serving.control.lock import YardLock

app = application()
POLL_S = 0.1


@app.command()
def down(
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="How long to wait for a drain.")] = 60.0,
    force: Annotated[bool, typer.Option("--force", help="Kill what has not stopped by then.")] = False,
    as_json: Json = False,
    state_dir: StateDirectory = None,
) -> None:
    """Stop the yard of a state directory, and the workers and engines that a killed one left running.

    \b
    Examples:
      modelyard down
      modelyard down --timeout 5 --force
    """
    import asyncio  # noqa: PLC0415 - not for --help

    state = StateDir.find(state_dir)
    stopped: list[str] = []
    if state.root.is_dir():
        try:
            lock = _stop_yard(state, timeout, force, stopped)
        except PermissionError:
            raise NotThereError(
                f"the yard in {shown(state.root)} is another user's: stop it as that user, or as root"
            ) from None
        try:
            _stop_workers(state, timeout, stopped)
            asyncio.run(_stop_engines(state, timeout, stopped))
            state.yard_json.unlink(missing_ok=True)
        finally:
            lock.release()
    if as_json:
        terminal.print_json({"state_dir": str(state.root), "stopped": stopped})
    else:
        text = "".join(f"stopped {one}\n" for one in stopped) or f"nothing was running in {shown(state.root)}\n"
        sys.stdout.write(text)


def _stop_yard(state: StateDir, timeout_s: float, force: bool, stopped: list[str]) -> YardLock:
    """Ask the running control plane to stop and wait for it; returns its lock, so that none starts meanwhile."""
    from serving.control.lock import StateDirBusyError, YardLock  # noqa: PLC0415 - not for --help

    asked = 0
    until = time.monotonic() + timeout_s
    while True:
        try:
            lock = YardLock.take(state.lock)
        except StateDirBusyError:
            pid = _holder(state)
            if pid and not asked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
                asked = pid
            if time.monotonic() > until:
                if not force:
                    raise NotThereError(
                        f"the yard (pid {pid}) has not stopped within {timeout_s:g} s: it is finishing requests; wait, "
                        "or add --force"
                    ) from None
                if pid:  # 0 would be this program's own process group
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_S)
            continue
        if asked:
            _wait_for_exit(asked)
            stopped.append(f"yard (pid {asked})")
        return lock


def _wait_for_exit(pid: int) -> None:
    """Wait for a yard that has let go of its lock to be gone altogether; it has nothing left to do."""
    import psutil  # noqa: PLC0415 - not for --help

    with contextlib.suppress(psutil.Error, psutil.TimeoutExpired):
        psutil.Process(pid).wait(timeout=5)


def _holder(state: StateDir) -> int:
    """The pid that the lock names; 0 in the moment before it is written."""
    try:
        return int(state.lock.read_text().strip() or 0)
    except (OSError, ValueError):
        return 0


def _stop_workers(state: StateDir, timeout_s: float, stopped: list[str]) -> None:
    from serving.control.worker_process import WorkerRecord  # noqa: PLC0415 - not for --help

    found: list[psutil.Process] = []
    for path in sorted(state.workers.glob("*/worker.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            record = WorkerRecord(**json.loads(path.read_text()))
            process = record.process()
            if process is not None:
                found.append(process)
                stopped.append(f"worker {record.id} (pid {record.pid})")
        path.unlink(missing_ok=True)
    _end(found, timeout_s)


async def _stop_engines(state: StateDir, timeout_s: float, stopped: list[str]) -> None:
    import asyncio  # noqa: PLC0415 - not for --help

    from serving.engines.process import EngineProcess, recorded  # noqa: PLC0415

    engines: list[EngineProcess] = []
    for path in _engine_folders(state):
        record = recorded(path)
        if record is None:
            continue
        engine = EngineProcess(path, record, None)
        if engine.alive():
            stopped.append(f"engine {record.id} (pid {record.pid})")
        engines.append(engine)
    await asyncio.gather(*(engine.end(min(timeout_s, 10.0)) for engine in engines))
    strays = list(_marked(state))
    stopped += [f"stray engine process (pid {process.pid})" for process in strays]
    _end(strays, min(timeout_s, 10.0))


def _engine_folders(state: StateDir) -> Iterator[Path]:
    for path in sorted(state.engines.rglob("engine.json")):
        yield path.parent


def _marked(state: StateDir) -> Iterator[psutil.Process]:
    """Processes that belong to one of this directory's engines, though no record names them."""
    import psutil  # noqa: PLC0415 - not for --help

    from serving.engines.process import folder_of  # noqa: PLC0415

    engines = state.engines.resolve()
    for process in psutil.process_iter():
        folder = folder_of(process)
        if folder is not None and folder.is_relative_to(engines):
            yield process


def _end(processes: list[psutil.Process], timeout_s: float) -> None:
    """SIGTERM, then SIGKILL after the deadline; returns when they are gone."""
    import psutil  # noqa: PLC0415 - not for --help

    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
