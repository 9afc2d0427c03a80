"""`modelyard route`: how a model's traffic is divided, and whether that may change.

Owns: reading weights from the command line, showing routes. Never: dividing buckets (the control plane does).
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import typer

from registry import terminal
from registry.terminal import UserError
from serving.commands import render
from serving.commands.client import AdminClient
from serving.commands.options import AdminUrl, Json, StateDirectory, group

app = group("How a model's traffic is divided: set, show, history; pause and resume.")
WEIGHT_MAX = 10**12
"""Weights beyond it are not even summed."""
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model's public name, e.g. assistant.")]


def pairs(given: list[str], example: str) -> dict[str, str]:
    """`NAME=VALUE` arguments as a mapping. Raises UserError, which shows the example."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise UserError(f"{text!r} is not of the form NAME=VALUE, e.g. {example}")
        if name in found:
            raise UserError(f"{name!r} is given twice: give every name once")
        found[name] = value
    return found


def parse_weights(given: list[str]) -> dict[str, int]:
    """`v1=9000 v2=1000`, or all in per cent: `v1=90% v2=10%`. Raises UserError."""
    found: dict[str, int] = {}
    for label, text in pairs(given, "v1=9000").items():
        try:
            points = Decimal(text.removesuffix("%")) * (100 if text.endswith("%") else 1)
        except InvalidOperation:
            points = Decimal(-1)
        if not points.is_finite() or not 0 <= points <= WEIGHT_MAX or points != int(points):
            raise UserError(f"the weight of {label} is {text!r}: give basis points like 9000, or per cent like 90%")
        found[label] = int(points)
    total = sum(found.values())
    if total != 10_000:
        per_cent = " ".join(f"{label}={points}%" for label, points in found.items())
        hint = f"; for per cent write {per_cent}" if total == 100 else ""
        raise UserError(f"the weights sum to {total}: they must sum to 10000 basis points (100%){hint}")
    return found


def changed_text(answer: dict[str, Any]) -> str:
    """What a change of route did, in a line."""
    route = answer["route"]
    text = (
        f"{route['model']}  route {route['revision']}: {render.weights(route['weights'])}  "
        f"(in force after {answer['applied_ms']:.0f} ms; {answer['moved_buckets'] / 100:g}% of keys moved)"
    )
    if answer.get("waiting_for"):
        text += f"\n! not confirmed yet by {', '.join(answer['waiting_for'])}: they follow when they can be reached"
    return text


def segment_text(segment: dict[str, Any]) -> str:
    """A segment of a route in a line: who is in it, and where they go."""
    conditions = " and ".join(
        f"{one['kind']} {one['name']}".rstrip() + " is " + " or ".join(one["values"]) for one in segment["when"]
    )
    return f"  segment {segment['name']}: {render.weights(segment['weights'])} where {render.escaped(conditions)}"


def shadow_text(shadow: dict[str, Any]) -> str:
    """A shadow of a route in a line."""
    seconds = shadow["engine_seconds_per_hour"]
    budget = f", {seconds:g} engine seconds per hour" if seconds else ""
    return (
        f"  shadow {shadow['label']}: copies of {shadow['sample'] / 100:g}% of requests; per worker at most "
        f"{shadow['inflight_max']} at a time{budget}"
    )


def pause_text(pause: dict[str, Any]) -> str:
    """A pause in a line."""
    why = f": {render.escaped(pause['reason'])}" if pause["reason"] else ""
    return f"[yellow]paused[/] by {render.escaped(pause['paused_by'])} at {render.moment(pause['paused_at'])}{why}"


@app.command("set")
def set_route(
    model: Model,
    weights: Annotated[list[str], typer.Argument(metavar="LABEL=WEIGHT", help="Basis points summing to 10000.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also without a ready engine, past a pause or a required gate (audited).")
    ] = False,
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """Divide a model's traffic anew. Answers once every router worker serves by it; streams in flight go on.

    \b
    Examples:
      modelyard route set assistant v1=9000 v2=1000
      modelyard route set assistant v1=50% v2=50%
    """
    body = {"weights": parse_weights(weights), "force": force}
    answer = AdminClient.find(admin_url, state_dir).send("PUT", "models", model, "route", body=body)
    terminal.print_json(answer) if as_json else render.show(changed_text(answer))


@app.command("show")
def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="One model; all of them without it.")] = "",
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """The route in force.

    \b
    Examples:
      modelyard route show
      modelyard route show assistant --json
    """
    client = AdminClient.find(admin_url, state_dir)
    names = [model] if model else [one["model"] for one in client.get("models") if one["route"]]
    found = [client.get("models", name, "route") for name in names]
    if as_json:
        terminal.print_json(found[0] if model else found)
        return
    lines = []
    for route in found:
        sticky = ", ".join(route["sticky"]) or "nothing"
        fallback = f"; falls back to {', '.join(route['fallback'])}" if route["fallback"] else ""
        lines.append(
            f"[bold]{route['model']}[/]  route {route['revision']}: {render.weights(route['weights'])}\n"
            f"  sticky by {sticky}{fallback}; set by {render.escaped(route['created_by'])} "
            f"at {render.moment(route['created_at'])}"
        )
        if route["pause"]:
            lines.append(f"  {pause_text(route['pause'])}")
        lines += [segment_text(one) for one in route["segments"]]
        lines += [shadow_text(one) for one in route["shadows"]]
    render.show(*lines)


@app.command("pause")
def pause(
    model: Model,
    reason: Annotated[str, typer.Option("--reason", "-m", metavar="TEXT", help="Why, for who comes next.")] = "",
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """Hold a route where it is: `route set` is refused until `route resume`, except by force.

    Traffic goes on as it is divided now, and `modelyard rollback` always works. It outlives a restart.

    \b
    Examples:
      modelyard route pause assistant --reason "v2 looks slow since noon"
      modelyard route pause assistant --json
    """
    client = AdminClient.find(admin_url, state_dir)
    route = client.send("PUT", "models", model, "route", "pause", body={"reason": reason})
    if as_json:
        terminal.print_json(route)
    else:
        render.show(f"{model}  held at route {route['revision']}: {render.weights(route['weights'])}")


@app.command("resume")
def resume(model: Model, as_json: Json = False, admin_url: AdminUrl = None, state_dir: StateDirectory = None) -> None:
    """Let a paused route be changed again. By itself that changes nothing.

    \b
    Example:
      modelyard route resume assistant
    """
    route = AdminClient.find(admin_url, state_dir).send("DELETE", "models", model, "route", "pause")
    if as_json:
        terminal.print_json(route)
    else:
        render.show(f"{model}  may change again from route {route['revision']}: {render.weights(route['weights'])}")


@app.command("history")
def history(
    model: Model,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many, newest first.")] = 20,
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """Earlier revisions of a route; `modelyard rollback MODEL --to N` brings one back.

    \b
    Example:
      modelyard route history assistant
    """
    found = AdminClient.find(admin_url, state_dir).get("models", model, "route", "history", limit=limit)
    if as_json:
        terminal.print_json(found)
        return
    rows = [
        (
            str(route["revision"]),
            render.weights(route["weights"]),
            f"brought back {route['restores']}" if route["restores"] else "",
            render.moment(route["created_at"]),
            render.escaped(route["created_by"]),
        )
        for route in found
    ]
    render.show(render.table((">revision", "weights", "", "when", "by"), rows))
