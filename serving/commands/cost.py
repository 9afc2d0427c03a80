"""`modelyard cost`: tokens and money, what was idle, where it leads; the weekly report.

Owns: the commands and their options. Never: tables (`cost_tables`), arithmetic of money (the control plane's).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from registry import terminal
from registry.terminal import ExitCode, NotThereError, UserError
from serving.commands.client import AdminClient
from serving.commands.options import AdminUrl, Json, StateDirectory, application

BASES = ("allocated", "busy", "energy")
METHODS = ("inflight", "sm", "tokens", "cpu_time")
DIMENSIONS = ("version", "model", "key", "segment", "hour", "outcome")
FORMATS = ("md", "html")
TIMEOUT_S = 120.0
"""A statement of many months by hour and key takes its time."""


class _ShowByDefault(TyperGroup):
    """`cost` and `cost --since 24h` mean `cost show …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, "--help"):
            args = ["show", *args]
        return list(super().parse_args(ctx, args))


app = application(
    "What it cost, and what it will: `cost [--since 24h] [--by version,key]` shows it.", cls=_ShowByDefault
)


@app.command()
def show(
    since: Annotated[
        str, typer.Option(metavar="SPAN", help="24h, 30m, 7d or Unix seconds, billed in whole hours [default: all].")
    ] = "",
    until: Annotated[str, typer.Option(metavar="SPAN", help="The same [default: now].")] = "",
    by: Annotated[
        str, typer.Option(metavar="NAME,…", help=f"How lines are told apart: of {', '.join(DIMENSIONS)}.")
    ] = "version",
    basis: Annotated[str, typer.Option(metavar="|".join(BASES), help="Only this basis [default: all].")] = "",
    method: Annotated[
        str, typer.Option(metavar="|".join(METHODS), help="How time is divided [default: inflight].")
    ] = "",
    hosted: Annotated[
        list[str] | None,
        typer.Option(metavar="PROVIDER/MODEL", help="What the tokens would have cost there; may be given again."),
    ] = None,
    all_bills: Annotated[bool, typer.Option("--all", help="Every method, not the main one alone.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print one row per line of each bill.")] = False,
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """What it cost, per version, with idle time on lines of its own; every bill's lines sum to its total.

    Each bill is one way of looking at the same machine (its basis): never add two of them up.

    \b
    Examples:
      modelyard cost
      modelyard cost --since 24h --by version,outcome
      modelyard cost --since 7d --by key --csv > week.csv
      modelyard cost --hosted openai/gpt-4o-mini
      modelyard cost show --json | jq '.usage'
    """
    _one_of("--basis", basis, ("", *BASES))
    _one_of("--method", method, ("", *METHODS))
    for name in by.split(","):
        _one_of("--by", name.strip(), DIMENSIONS)
    if as_csv and as_json:
        raise UserError("--csv and --json exclude each other: give one of them")
    client = AdminClient.find(admin_url, state_dir, timeout_s=TIMEOUT_S)
    found = client.get(
        "cost", since=since, until=until, by=by, basis=basis, method=method, hosted=",".join(hosted or ())
    )
    if as_json:
        terminal.print_json(found)
        return
    from serving.commands import cost_tables, render  # noqa: PLC0415 - not for --help

    if not (all_bills or method):
        found["bills"] = [one for one in found["bills"] if one["method"] == "inflight"]
        found["unit_costs"] = [one for one in found["unit_costs"] if one["method"] == "inflight"]
    if as_csv:
        cost_tables.write_csv(found, sys.stdout)
    else:
        render.show(*cost_tables.statement(found))


@app.command()
def forecast(as_json: Json = False, admin_url: AdminUrl = None, state_dir: StateDirectory = None) -> None:
    """What the month will have cost at its end, with an interval, and how many days that rests on.

    Example: modelyard cost forecast
    """
    found = AdminClient.find(admin_url, state_dir, timeout_s=TIMEOUT_S).get("cost", "forecast")
    _print(found, "forecast", as_json)


@app.command()
def budgets(as_json: Json = False, admin_url: AdminUrl = None, state_dir: StateDirectory = None) -> None:
    """How much of each budget is spent and whether it will hold. Exit code 1 where one is exceeded.

    Budgets are set in the configuration: `budgets: [{name: team, amount: 500, period: month}]`.

    Example: modelyard cost budgets
    """
    found = AdminClient.find(admin_url, state_dir, timeout_s=TIMEOUT_S).get("cost", "budgets")
    _print(found, "budgets", as_json)
    if any(one["state"] == "over" for one in found["budgets"]):
        raise SystemExit(int(ExitCode.GATE_FAILED))


@app.command()
def anomalies(as_json: Json = False, admin_url: AdminUrl = None, state_dir: StateDirectory = None) -> None:
    """Versions whose requests cost significantly more than on the days before, and what drove that.

    Example: modelyard cost anomalies
    """
    found = AdminClient.find(admin_url, state_dir, timeout_s=TIMEOUT_S).get("cost", "anomalies")
    _print(found, "anomalies", as_json)


@app.command()
def report(
    week: Annotated[
        str, typer.Option(metavar="YYYY-Www", help="As 2026-W47 (ISO 8601, UTC) [default: the last one that is over].")
    ] = "",
    form: Annotated[
        str, typer.Option("--format", metavar="md|html", help="[default: by the name of --out, else md].")
    ] = "",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it there [default: print it].")] = None,
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """The report of a week: what it cost and whom for, beside the week before; forecast, budgets, dearer requests.

    The HTML page needs nothing else: it can be sent by mail.

    \b
    Examples:
      modelyard cost report
      modelyard cost report --week 2026-W47 --out week.html
    """
    kind = "json" if as_json else form or ("html" if out is not None and out.suffix in (".html", ".htm") else "md")
    _one_of("--format", kind, (*FORMATS, "json"))
    client = AdminClient.find(admin_url, state_dir, timeout_s=TIMEOUT_S)
    text = client.text("cost", "report", week=week, format=kind)
    if out is None:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise NotThereError(f"{out} cannot be written ({error.strerror}): name another file") from None
    sys.stderr.write(f"modelyard: wrote {out}\n")


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{option} is {value!r}: it is one of {', '.join(name for name in known if name)}")


def _print(found: dict[str, Any], table: str, as_json: bool) -> None:
    if as_json:
        terminal.print_json(found)
        return
    from serving.commands import cost_outlook_tables, render  # noqa: PLC0415 - not for --help

    render.show(*getattr(cost_outlook_tables, table)(found))
