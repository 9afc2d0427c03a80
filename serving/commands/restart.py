"""`modelyard restart`: the router's workers one after another, or one engine.

Owns: showing how far it is, waiting until the engine is ready again. Never: replacing, draining, starting (the control
plane does).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from registry import terminal
from registry.terminal import NotThereError, UserError
from serving.commands import render
from serving.commands.client import AdminClient, goes_on
from serving.commands.options import AdminUrl, Json, StateDirectory, application

app = application()
RESTART_TIMEOUT_S = 24 * 3600.0
READY_TIMEOUT_S = 600.0
LOOK_S = 0.4

Tell = Callable[[str], None]
"""Shows what happens now."""


@app.command()
def restart(
    engine: Annotated[
        str | None,
        typer.Option(metavar="REPLICA", help="This engine: assistant@v1/0; without /N a version's only one."),
    ] = None,
    ready_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="How long to wait until the engine is ready again.")
    ] = READY_TIMEOUT_S,
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """Replace the router's workers one by one; no request fails and no stream breaks. With --engine, restart an engine.

    Each new worker serves before the old one goes. The old one finishes what it has, for at most `server.drain_s`;
    streams that take longer end with an error event. Engines and the control plane are not touched.

    An engine gets no new requests, finishes what it has, for at most `server.drain_s`, and is started anew. Other
    engines of its version and the fallback take its requests meanwhile; where there is none they are refused. The
    command ends when the engine is ready again, and with exit code 4 where it does not come up.

    \b
    Examples:
      modelyard restart
      modelyard restart --json | jq '.replacements[].drained_s'
      modelyard restart --engine assistant@v1/0
    """
    parts = None if engine is None else _parts(engine)
    client = AdminClient.find(admin_url, state_dir, timeout_s=RESTART_TIMEOUT_S)
    looking = AdminClient.find(admin_url, state_dir, timeout_s=10)
    if parts is None:
        with goes_on("modelyard status"):
            done = _workers(client, looking)
        terminal.print_json(done) if as_json else _show(done)
        return
    _warn(looking.get("status"), "/".join(parts))
    with goes_on("modelyard status"):
        done = _engine(client, looking, parts, ready_timeout)
    if as_json:
        terminal.print_json(done)
    if done["state"] != "ready":
        raise NotThereError(_why_not(done, ready_timeout))
    if not as_json:
        render.show(sentence(done))


def _followed(ask: Callable[[], Any], look: Callable[[], None]) -> Any:
    """What is asked for, looking how far it is until it is done."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["done"] = ask()
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(LOOK_S)
        if thread.is_alive():
            look()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["done"]


# The router's workers


def _workers(client: AdminClient, looking: AdminClient) -> dict[str, Any]:
    with terminal.progress() as display:
        task = display.add_task("replacing workers", total=None)

        def look() -> None:
            found = None if display.disable else looking.get("workers", "restart")
            if found and found["running"]:
                count = len(found["replacements"])
                display.update(task, total=found["total"], completed=count, description=found["step"])

        done: dict[str, Any] = _followed(lambda: client.send("POST", "workers", "restart"), look)
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


# One engine


def _parts(engine: str) -> tuple[str, ...]:
    """`assistant@v1/0` as the parts of its path; `assistant@v1` is one. Raises UserError."""
    ref, _, index = engine.partition("/")
    if not ref or (index and not index.isdecimal()):
        raise UserError(f"{engine!r} names no replica: write MODEL@LABEL/N, e.g. assistant@v1/0")
    return (ref, index) if index else (ref,)


def _warn(status: dict[str, Any], name: str) -> None:
    """Say on standard error what happens to the requests of a version whose only ready engine goes."""
    ready = [one for one in status["engines"] if one["state"] == "ready"]
    going = next((one for one in ready if name in (one["id"], one["ref"])), None)
    if going is None or sum(one["ref"] == going["ref"] for one in ready) > 1:
        return
    model, _, label = going["ref"].partition("@")
    known = next((one["fallback"] for one in status["models"] if one["model"] == model), ())
    others = ", ".join(one for one in known if one != label)
    then = f"go to the fallback {others}, and those that name {going['ref']} are refused" if others else "are refused"
    sys.stderr.write(f"no other engine serves {going['ref']}: until it is ready again, its requests {then}\n")


def _engine(client: AdminClient, looking: AdminClient, parts: tuple[str, ...], limit_s: float) -> dict[str, Any]:
    """Restart it, and wait until it is ready, has failed, is wanted no more, or the time is over."""
    name = "/".join(parts)
    with _telling(f"restarting {name}") as tell:

        def look() -> None:
            if sys.stderr.isatty():
                found = _found(looking, name)
                if found and found["state"] == "draining":
                    count = found["inflight"]
                    tell(f"{found['id']} finishes {count} {'request' if count == 1 else 'requests'}")

        done = _followed(lambda: client.send("POST", "engines", *parts, "restart"), look)
        began = time.monotonic()
        while True:
            found = _found(looking, done["replica"])
            state = found["state"] if found else "gone"
            waited_s = time.monotonic() - began
            if state in ("ready", "failed", "gone") or waited_s > limit_s:
                break
            tell(f"{done['replica']} is {'starting' if state == 'starting' else 'started again: it ended'}")
            time.sleep(LOOK_S)
    last_error = found["last_error"] if found and state != "ready" else ""
    ready_s = waited_s if state == "ready" else None
    return {**done, "state": state, "ready_s": ready_s, "last_error": last_error}


@contextmanager
def _telling(first: str) -> Iterator[Tell]:
    """A line on standard error that changes; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    with terminal.console(stderr=True).status(render.escaped(first)) as status:
        yield lambda text: status.update(render.escaped(text))


def _found(looking: AdminClient, name: str) -> dict[str, Any] | None:
    """The engine of that name as the status has it."""
    return next((dict(one) for one in looking.get("status")["engines"] if name in (one["id"], one["ref"])), None)


def sentence(done: dict[str, Any]) -> str:
    """How it went, of an engine that is ready again."""
    drained, ready = render.seconds(done["drained_s"]), render.seconds(done["ready_s"])
    return f"{done['replica']} is ready again: drained in {drained}, ready {ready} later{_unfinished(done)}"


def _unfinished(done: dict[str, Any]) -> str:
    if not done["unfinished"]:
        return ""
    were = "1 request was" if done["unfinished"] == 1 else f"{done['unfinished']} requests were"
    return f"; {were} not finished within `server.drain_s`"


def _why_not(done: dict[str, Any], limit_s: float) -> str:
    replica, last = done["replica"], (done["last_error"].strip().splitlines() or [""])[-1]
    if done["state"] == "gone":
        return f"{replica} is wanted no more: another configuration was applied meanwhile"
    why = f": {last}" if last else ""
    if done["state"] == "failed":
        return f"{replica} did not come up again{why}; `modelyard logs {replica}` has more"
    return f"{replica} is not ready after {limit_s:g} s{why}; the yard goes on with it, see `modelyard status`"
