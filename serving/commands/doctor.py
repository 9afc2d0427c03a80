"""`modelyard doctor`: what this machine has and lacks, each with its remedy.

Owns: the list of checks and how they are shown. Never: mending anything, or starting an engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from registry import terminal
from registry.terminal import ExitCode
from serving.commands.options import Json, StateDirectory, application

app = application()
MARKS = {"ok": "[green]ok[/]", "note": "[cyan]note[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]fail[/]"}


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="Also check that this configuration could start here.")
    ] = None,
    as_json: Json = False,
    state_dir: StateDirectory = None,
) -> None:
    """Check Python, packages, engines, ports, GPU, disk, memory and the state directory; each with a remedy.

    Exits with 4 where something that is needed is not there.

    \b
    Examples:
      modelyard doctor
      modelyard doctor configs/quickstart.yaml --json
    """
    from registry.state import StateDir  # noqa: PLC0415 - the checks import much
    from serving.commands.checks import examine  # noqa: PLC0415

    found = examine(StateDir.find(state_dir), config)
    if as_json:
        terminal.print_json([check.as_json() for check in found])
    else:
        from serving.commands import render  # noqa: PLC0415 - drawing only

        rows = [
            (
                MARKS[check.result],
                check.name,
                render.escaped(check.detail) + (f"\n[bold]→ {render.escaped(check.remedy)}[/]" if check.remedy else ""),
            )
            for check in found
        ]
        render.show(render.table(("", "what", "found"), rows))
    if any(check.result == "fail" for check in found):
        raise SystemExit(int(ExitCode.NOT_THERE))
