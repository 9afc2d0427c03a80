"""`modelyard apply`: a changed configuration for the running yard.

Owns: showing the plan. Never: planning (the control plane does).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from registry import terminal
from registry.terminal import NotThereError, UserError
from serving.commands import render
from serving.commands.client import AdminClient, goes_on
from serving.commands.options import AdminUrl, Json, StateDirectory, application

app = application()
APPLY_TIMEOUT_S = 3600.0
MARKS = {True: "[green]+[/]", False: "[dim]=[/]"}


@app.command()
def apply(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration file.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """Show what a configuration would change in the running yard, then change it.

    Engines that run what is wanted are left alone, and so are routes: `modelyard route set` changes those.

    \b
    Examples:
      modelyard apply configs/quickstart.yaml --dry-run
      modelyard apply configs/quickstart.yaml
    """
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise NotThereError(f"the configuration file {config} cannot be read: {reason}") from None
    client = AdminClient.find(admin_url, state_dir, timeout_s=APPLY_TIMEOUT_S)
    body = {"config": text, "path": str(config.absolute())}
    plan = client.send("POST", "apply", query={"dry_run": "true"}, body=body)
    if not as_json:
        _show(plan)
    if plan["refusals"]:
        terminal.print_json(plan) if as_json else None
        raise UserError("the configuration was not applied: " + "; ".join(plan["refusals"]))
    if not dry_run:
        with goes_on("modelyard status"), terminal.busy("applying"):
            plan = client.send("POST", "apply", body=body)
    if as_json:
        terminal.print_json(plan)
    else:
        count = sum(step["changes"] for step in plan["steps"])
        changes = f"{count} {'change' if count == 1 else 'changes'}"
        render.show(f"{changes}, not made (--dry-run)" if dry_run else f"applied: {changes}")


def _show(plan: dict[str, Any]) -> None:
    rows = [
        (MARKS[step["changes"]], step["kind"], render.escaped(step["subject"]), render.escaped(step["reason"]))
        for step in plan["steps"]
    ]
    rows += [("[red]x[/]", "refused", "", render.escaped(refusal)) for refusal in plan["refusals"]]
    render.show(render.table(("", "step", "what", "why"), rows))
