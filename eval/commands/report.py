"""`modelyard eval report`: what was run, listed, shown, exported.

Owns: the commands' options. Never: the layout of reports.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from eval.commands.options import Alpha, Json, StateDirectory, check_alpha, plainly, run_store, show_run
from eval.errors import RunError
from registry import terminal

app = typer.Typer(
    help="What was run: list, show, export.", add_completion=False, no_args_is_help=True, rich_markup_mode=None
)


@app.command("list")
def report_list(state_dir: StateDirectory = None, json: Json = False) -> None:
    """Every run, the oldest first."""
    with plainly():
        from eval.reports import document  # noqa: PLC0415 - heavy
        from eval.reports import terminal as tables  # noqa: PLC0415 - heavy

        rows = [document.of_run(run) for run in run_store(state_dir).all()]
        if json:
            terminal.print_json(rows)
        elif rows:
            tables.runs(terminal.console(), rows)
        else:
            sys.stderr.write("no run yet: modelyard eval run quickstart --model assistant@v1 makes one\n")


@app.command("show")
def report_show(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or a part of it that fits one run.")],
    state_dir: StateDirectory = None,
    alpha: Alpha = 0.05,
    json: Json = False,
) -> None:
    """The scores and the speed of one run."""
    with plainly():
        check_alpha(alpha)
        show_run(run_store(state_dir).get(name), alpha, json)


@app.command("export")
def report_export(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or a part of it that fits one run.")],
    to: Annotated[Path, typer.Argument(metavar="FILE", help="A .parquet, .csv, .jsonl or .json file.")],
    state_dir: StateDirectory = None,
) -> None:
    """Write a run's samples to a file."""
    with plainly():
        found = run_store(state_dir).get(name)
        frame = found.frame()
        if frame.empty:
            raise RunError(f"the run {found.name} has no sample yet: there is nothing to export")
        writers: dict[str, Any] = {
            ".parquet": lambda: frame.to_parquet(to, index=False),
            ".csv": lambda: frame.to_csv(to, index=False),
            ".jsonl": lambda: frame.to_json(to, orient="records", lines=True, force_ascii=False),
            ".json": lambda: frame.to_json(to, orient="records", force_ascii=False),
        }
        if to.suffix not in writers:
            raise terminal.UserError(f"{to} cannot be written: its name must end in {', '.join(writers)}")
        try:
            writers[to.suffix]()
        except OSError as error:
            raise terminal.UserError(f"{to} cannot be written: {error.strerror or error}") from error
        sys.stderr.write(f"{len(frame)} samples in {to}\n")
