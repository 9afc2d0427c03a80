"""`modelyard audit`."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from registry import terminal
from serving.commands import render
from serving.commands.client import AdminClient
from serving.commands.options import AdminUrl, Json, StateDirectory, application

app = application()
CUT = 60
DIGEST = re.compile(r"sha256:([0-9a-f]{12})[0-9a-f]{52}")
"""Shown as `versions list` does; --json has it whole."""


@app.command()
def audit(
    subject: Annotated[str, typer.Argument(metavar="SUBJECT", help="Only this model or version.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many, newest first.")] = 20,
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """Who changed what, and when.

    \b
    Examples:
      modelyard audit
      modelyard audit assistant --limit 5 --json
    """
    found = AdminClient.find(admin_url, state_dir).get("audit", limit=limit, subject=subject)
    if as_json:
        terminal.print_json(found)
        return
    rows = [
        (
            render.moment(one["at"]),
            render.escaped(one["actor"]),
            one["action"],
            render.escaped(one["subject"]),
            _value(one["before"]),
            _value(one["after"]),
        )
        for one in found
    ]
    columns = ("when", "by", "action", "subject", "before", "after")
    nothing = f"no change of {subject!r} is on record" if subject else "no change is on record yet"
    render.show(render.table(columns, rows) if rows else nothing)


def _value(value: dict[str, Any] | None) -> str:
    """What was there before or after; of a route, what it says of traffic."""
    if value and isinstance(value.get("weights"), dict):
        return f"{value.get('revision', '')}: {render.weights(value['weights'])}"
    text = DIGEST.sub(r"\1", render.brief(value))
    return render.escaped(text if len(text) <= CUT else f"{text[:CUT]}…")
