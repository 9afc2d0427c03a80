"""`modelyard restart`: the router's workers, one after another, without a request noticing.

Owns: showing how far it is. Never: replacing (the control plane does).
"""

from __future__ import annotations

import threading
import time
from typing import Any

from registry import terminal
from serving.commands import render
from serving.commands.client import AdminClient, goes_on
from serving.commands.options import AdminUrl, Json, StateDirectory, application

app = application()
RESTART_TIMEOUT_S = 24 * 3600.0
LOOK_S = 0.2


@app.command()
def restart(as_json: Json = False, admin_url: AdminUrl = None, state_dir: StateDirectory = None) -> None:
    """Replace the router's workers one by one; no request fails and no stream breaks.

    Each new worker serves before the old one goes. The old one finishes what it has, for at most `server.drain_s`;
    streams that take longer end with an error event. Engines and the control plane are not touched.

    \b
    Examples:
      modelyard restart
      modelyard restart --json | jq '.replacements[].drained_s'
    """
    client = AdminClient.find(admin_url, state_dir, timeout_s=RESTART_TIMEOUT_S)
    looking = AdminClient.find(admin_url, state_dir, timeout_s=10)
    with goes_on("modelyard status"):
        done = _followed(client, looking)
    if as_json:
        terminal.print_json(done)
    else:
        _show(done)


def _followed(client: AdminClient, looking: AdminClient) -> dict[str, Any]:
    """Ask for it, and show on a terminal how far it is meanwhile."""
    outcome: dict[str, Any] = {}

    def ask() -> None:
        try:
            outcome["done"] = client.send("POST", "workers", "restart")
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    with terminal.progress() as display:
        task = display.add_task("replacing workers", total=None)
        while thread.is_alive():
            thread.join(LOOK_S)
            if display.disable or not thread.is_alive():
                continue
            found = looking.get("workers", "restart")
            if found["running"]:
                count = len(found["replacements"])
                display.update(task, total=found["total"], completed=count, description=found["step"])
            time.sleep(LOOK_S)
    if "error" in outcome:
        raise outcome["error"]
    done: dict[str, Any] = outcome["done"]
    return done


def _show(done: dict[str, Any]) -> None:
    rows = [
        (
            f"{one['replaced']} → [bold]{one['worker']}[/]",
            render.seconds(one["ready_s"]),
            render.seconds(one["drained_s"]),
            f"[red]{one['cut_off']}[/]" if one["cut_off"] else "0",
        )
        for one in done["replacements"]
    ]
    render.show(render.table(("worker", ">ready after", ">drained in", ">cut off"), rows))
