"""How every command speaks: exit codes, one-sentence errors, JSON, tables and progress bars.

Owns: the contract of exit codes and the consoles. Never: what a command does. Rich is imported only when something is
drawn, so that `--help` stays quick.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

PIPED_COLUMNS = 160
"""How wide tables are where no terminal says how wide it is: whoever reads them there wants whole names."""


class ExitCode(IntEnum):
    """What a shell script may rely on."""

    DONE = 0
    """Done, or the gate passed."""
    GATE_FAILED = 1
    USAGE = 2
    """Wrong usage or configuration."""
    INCONCLUSIVE = 3
    NOT_THERE = 4
    """An engine, a server or a file that the command depends on is not there."""


class UserError(Exception):
    """Something that the user can mend. `str(error)` is one sentence with the cause and the remedy."""

    exit_code = ExitCode.USAGE


class NotThereError(UserError):
    """A dependency (engine, server, file) is not there."""

    exit_code = ExitCode.NOT_THERE


def console(*, stderr: bool = False) -> Console:
    """A rich console on standard output (data) or standard error (progress, remarks)."""
    from rich.console import Console  # noqa: PLC0415 - costs 40 ms, wanted only when something is drawn

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PIPED_COLUMNS
    return Console(stderr=stderr, highlight=False, width=width, soft_wrap=not stream.isatty())


def print_json(value: Any) -> None:
    """One JSON document on standard output, indented for people where it is a terminal."""
    indent = 2 if sys.stdout.isatty() else None
    sys.stdout.write(json.dumps(value, indent=indent, ensure_ascii=False, default=str) + "\n")


def fail(error: Exception | str, code: ExitCode = ExitCode.USAGE) -> NoReturn:
    """Say what went wrong in one sentence on standard error and exit by the contract."""
    sys.stderr.write(f"modelyard: {error}\n")
    raise SystemExit(int(getattr(error, "exit_code", code)))


@contextmanager
def progress(*, transient: bool = True) -> Iterator[Progress]:
    """A progress display on standard error for whatever takes over a second; nothing where that is no terminal."""
    from rich.progress import (  # noqa: PLC0415 - as above
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    hidden = not sys.stderr.isatty()
    with Progress(*columns, console=console(stderr=True), transient=transient, disable=hidden) as display:
        yield display


@contextmanager
def busy(text: str) -> Iterator[None]:
    """Say on standard error what is going on, where it takes a moment and has no measurable progress."""
    if not sys.stderr.isatty():
        yield
        return
    with console(stderr=True).status(text):
        yield


def run(command: Callable[[], Any]) -> None:
    """Run a whole command: users' mistakes become one sentence, a closed pipe and Ctrl-C end quietly.

    Output that cannot be written (a full disk behind `>`, a closed descriptor) is one sentence too.
    """
    if sys.stdout is None:
        fail("standard output is closed: there is nowhere to write to")
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except UserError as error:
        fail(error, error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EBADF):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        fail(f"the output cannot be written ({error.strerror}): make room, or write it elsewhere")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
