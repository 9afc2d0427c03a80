"""`modelyard console`: the way into the console of a running yard.

Owns: asking for a one-time link, showing it or opening it. Never: pages (the control plane serves them).
"""

from __future__ import annotations

from typing import Annotated

import typer

from registry import terminal
from serving.commands.client import AdminClient
from serving.commands.options import AdminUrl, Json, StateDirectory, application

app = application()


@app.command()
def console(
    opens: Annotated[bool, typer.Option("--open", "-o", help="Open it in this machine's browser.")] = False,
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """Print a link that signs a browser in to the console: good once, for two minutes.

    What is done in that browser is in the audit under your name. Without a link, http://HOST:ADMIN_PORT/console shows
    what runs, and asks for the admin token where something is to be changed.

    \b
    Examples:
      modelyard console
      modelyard console --open
      ssh -L 8001:127.0.0.1:8001 SERVER     # then, on the server: modelyard console
    """
    link = AdminClient.find(admin_url, state_dir).send("POST", "console", "links")
    if as_json:
        terminal.print_json(link)
        return
    print(link["url"])  # noqa: T201 - alone on its line, to be copied
    if opens:
        import webbrowser  # noqa: PLC0415 - 20 ms that most calls need not take

        webbrowser.open(link["url"])
