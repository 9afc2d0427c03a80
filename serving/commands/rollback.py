"""`modelyard rollback`."""

from __future__ import annotations

from typing import Annotated

import typer

from registry import terminal
from serving.commands import render
from serving.commands.client import AdminClient
from serving.commands.options import AdminUrl, Json, StateDirectory, application
from serving.commands.route import Model, changed_text

app = application()


@app.command()
def rollback(
    model: Model,
    to: Annotated[int | None, typer.Option("--to", metavar="N", min=1, help="The revision [default: before].")] = None,
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """Put the route that was there before back: every key returns to the version that it had then.

    \b
    Examples:
      modelyard rollback assistant
      modelyard rollback assistant --to 3
    """
    client = AdminClient.find(admin_url, state_dir)
    answer = client.send("POST", "models", model, "rollback", body={"to": to})
    terminal.print_json(answer) if as_json else render.show(changed_text(answer))
