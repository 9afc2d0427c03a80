"""`modelyard eval`: run, compare, drift, report.

Owns: the list of commands; each lives in eval/commands/. Never: an option or what a command computes. Everything heavy
is imported inside a command, so that `--help` stays quick.
"""

from __future__ import annotations

import typer

from eval.commands import compare, drift, flips, gate, harness, judge, report, run, suites

app = typer.Typer(
    help="Run suites, compare two versions, report drift.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command()(run.run)
app.command(epilog=compare.EXIT_CODES)(compare.compare)
app.command()(flips.flips)
app.command()(drift.drift)
app.command()(harness.harness)
app.add_typer(judge.app, name="judge")
app.add_typer(gate.app, name="gate")
app.add_typer(report.app, name="report")
app.add_typer(suites.app, name="suites")


@app.callback()
def root() -> None:
    """Run suites, compare two versions, report drift."""
