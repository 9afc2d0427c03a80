"""`modelyard cost`: tokens and money per version, and what was idle.

Owns: the tables. Never: arithmetic of money; lines sum to their total because the control plane makes them so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from registry import terminal
from registry.terminal import UserError
from serving.commands import render
from serving.commands.client import AdminClient
from serving.commands.options import AdminUrl, Json, StateDirectory, application

if TYPE_CHECKING:
    from rich.console import RenderableType

app = application()
BASES = {
    "allocated": "held, busy or not",
    "busy": "with a request in flight",
    "energy": "metered energy",
}
FINENESS = ("version", "outcome")
METHODS = {"inflight": "divided by requests in flight", "cpu_time": "divided by engines' CPU time"}


@app.command()
def cost(
    since: Annotated[
        str, typer.Option(metavar="SPAN", help="24h, 30m, 7d or Unix seconds, billed in whole hours [default: all].")
    ] = "",
    by: Annotated[str, typer.Option(metavar="version|outcome", help="How fine the lines are.")] = "version",
    all_bills: Annotated[bool, typer.Option("--all", help="Every basis and method, not the two main ones.")] = False,
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """What it cost, per version, with idle time on a line of its own; every bill's lines sum to its total.

    Each bill is one way of looking at the same machine (its basis): never add two of them up.

    \b
    Examples:
      modelyard cost
      modelyard cost --since 24h --by outcome
      modelyard cost --json | jq '.usage'
    """
    if by not in FINENESS:
        raise UserError(f"--by is {by!r}: it is one of {', '.join(FINENESS)}")
    found = AdminClient.find(admin_url, state_dir).get("cost", since=since, by=by)
    terminal.print_json(found) if as_json else render.show(*views(found, all_bills=all_bills))


def views(found: dict[str, Any], *, all_bills: bool) -> list[RenderableType]:
    """The statement as tables: usage, the bills, unit costs."""
    parts: list[RenderableType] = [f"{render.moment(found['start'])} to {render.moment(found['stop'])}"]
    if found["usage"]:
        parts.append(_usage(found["usage"]))
    if found.get("tokens"):
        parts.append(_tokens(found["tokens"]))
    bills = [one for one in found["bills"] if all_bills or one["method"] == "inflight"]
    parts += [_bill(one) for one in bills]
    units = [one for one in found["unit_costs"] if all_bills or one["method"] == "inflight"]
    if units:
        parts.append(_units(units))
    if not found["bills"]:
        parts.append("nothing was billed yet: the first figures come some seconds after the start")
    return parts


def _usage(usage: list[dict[str, Any]]) -> RenderableType:
    outcomes = sorted({name for one in usage for name in one["requests"]}, key=lambda name: (name != "completed", name))
    rows = [
        (
            f"[bold]{one['version']}[/]",
            *(render.number(one["requests"].get(name, 0)) for name in outcomes),
            render.number(one["prompt_tokens"]),
            render.number(one["cached_tokens"]),
            render.number(one["completion_tokens"]),
        )
        for one in usage
    ]
    columns = ("version", *(f">{name}" for name in outcomes), ">prompt tokens", ">of them cached", ">completion tokens")
    return render.table(columns, rows, title="usage")


def _tokens(hosted: list[dict[str, Any]]) -> RenderableType:
    rows = [
        (
            f"[bold]{one['version']}[/]",
            render.number(one["prompt_tokens"]),
            render.number(one["completion_tokens"]),
            f"{one['nano'] / 1e9:.9f}",
        )
        for one in hosted
    ]
    columns = ("", ">prompt tokens", ">completion tokens", f">{hosted[0]['currency']}")
    return render.table(columns, rows, title="hosted: tokens (at the provider's price per token; on no bill below)")


def _bill(bill: dict[str, Any]) -> RenderableType:
    currency = bill["currency"]
    unit = "GPU-seconds" if bill["device_kind"] == "gpu" else "core-seconds"
    rows = [
        (
            f"[bold]{line['version']}[/]" if line["kind"] == "version" else line["kind"],
            line["outcome"],
            render.number(line["seconds"], 1),
            f"{line['nano'] / 1e9:.9f}",
        )
        for line in bill["lines"]
    ]
    seconds = sum(line["seconds"] for line in bill["lines"])
    rows.append(("[bold]total[/]", "", render.number(seconds, 1), f"[bold]{bill['total_nano'] / 1e9:.9f}[/]"))
    title = f"{bill['device']}: {bill['basis']} ({BASES[bill['basis']]}; {METHODS[bill['method']]})"
    columns = ["", "outcome", f">{unit}", f">{currency}"]
    if not any(row[1] for row in rows):
        columns.pop(1)
        return render.table(columns, [(row[0], *row[2:]) for row in rows], title=title)
    return render.table(columns, rows, title=title)


def _units(units: list[dict[str, Any]]) -> RenderableType:
    rows = [
        (
            f"[bold]{one['version']}[/]",
            one["basis"],
            render.money(one["per_1k_requests"], one["currency"]),
            render.money(one["per_1m_input_tokens"], one["currency"]),
            render.money(one["per_1m_output_tokens"], one["currency"]),
        )
        for one in units
    ]
    columns = ("version", "basis", ">per 1k requests", ">per 1M input tokens", ">per 1M output tokens")
    return render.table(columns, rows, title="unit costs")
