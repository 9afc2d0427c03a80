"""`modelyard logs`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from registry import terminal
from registry.terminal import UserError
from serving.commands.client import AdminClient
from serving.commands.options import AdminUrl, Json, StateDirectory, application

app = application()


@app.command()
def logs(
    replica: Annotated[str, typer.Argument(metavar="REPLICA", help="assistant@v1/0; without /N the first one.")],
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=10_000, help="How many lines from the end.")] = 50,
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """The last lines of an engine's log; the file that they stand in is named on standard error.

    \b
    Examples:
      modelyard logs assistant@v1/0
      modelyard logs assistant@v2 -n 500
    """
    ref, _, index = replica.partition("/")
    if index and not index.isdecimal():
        raise UserError(f"{replica!r} names no replica: write MODEL@LABEL/N, e.g. assistant@v1/0")
    found = AdminClient.find(admin_url, state_dir).get("engines", ref, index or "0", "log", lines=lines)
    if as_json:
        terminal.print_json(found)
        return
    sys.stderr.write(f"{found['path']}\n")
    sys.stdout.write("".join(f"{line}\n" for line in found["lines"]))
