"""`modelyard alias`: names that point to a version."""

from __future__ import annotations

from typing import Annotated

import typer

from registry import terminal
from serving.commands import render
from serving.commands.client import AdminClient
from serving.commands.options import AdminUrl, Json, StateDirectory, group
from serving.commands.route import Model, pairs

app = group("Names such as `champion` that point to a version.")


@app.command("set")
def set_alias(
    model: Model,
    names: Annotated[list[str], typer.Argument(metavar="ALIAS=LABEL", help="Which alias points to which version.")],
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """Point aliases to versions. Clients may then ask for `assistant@champion`.

    \b
    Example:
      modelyard alias set assistant champion=v1 challenger=v2
    """
    wanted = pairs(names, "champion=v1")
    client = AdminClient.find(admin_url, state_dir)
    found = [
        client.send("PUT", "models", model, "aliases", name, body={"label": label}) for name, label in wanted.items()
    ]
    if as_json:
        terminal.print_json(found)
        return
    for one in found:
        render.show(f"{one['model']}@{one['name']} is now {one['model']}@{one['label']}")


@app.command("list")
def list_aliases(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="One model; all of them without it.")] = "",
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """Every alias, where it points to and who moved it last.

    \b
    Example:
      modelyard alias list assistant
    """
    client = AdminClient.find(admin_url, state_dir)
    models = [model] if model else [one["model"] for one in client.get("models")]
    found = [alias for name in models for alias in client.get("models", name, "aliases")]
    if as_json:
        terminal.print_json(found)
        return
    rows = [
        (
            f"{one['model']}@{one['name']}",
            f"{one['model']}@{one['label']}",
            render.moment(one["updated_at"]),
            render.escaped(one["updated_by"]),
        )
        for one in found
    ]
    render.show(render.table(("alias", "version", "when", "by"), rows) if rows else "no alias yet")
