"""`modelyard status`: what runs now.

Owns: the tables. Never: the figures; rates and latencies are the control plane's, over the last minute.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from registry import terminal
from registry.terminal import NotThereError
from serving.commands import render
from serving.commands.client import AdminClient
from serving.commands.options import AdminUrl, Json, StateDirectory, application
from serving.commands.route import pause_text

if TYPE_CHECKING:
    from rich.console import RenderableType

app = application()


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Draw it anew, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(metavar="SECONDS", min=0.2, help="How often --watch asks.")] = 1.0,
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """Engines, route, tokens per second, requests in flight, time to first token and cost, per version.

    Rates and latencies are of the last minute, counts of all time. With --watch and --json: one line of JSON each time.

    \b
    Examples:
      modelyard status
      modelyard status --watch
      modelyard status --json | jq '.models[].versions[] | {ref, tokens_per_second}'
    """
    client = AdminClient.find(admin_url, state_dir, timeout_s=10)
    found = client.get("status")
    if not watch:
        terminal.print_json(found) if as_json else render.show(*views(found))
    elif as_json:
        _stream(client, found, interval)
    else:
        _live(client, found, interval)


def _stream(client: AdminClient, found: Any, interval_s: float) -> None:
    while True:
        sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        time.sleep(interval_s)
        found = client.get("status")


def _live(client: AdminClient, found: Any, interval_s: float) -> None:
    """Redraw until Ctrl-C; a yard that is away for a while is waited for."""
    from rich.console import Group  # noqa: PLC0415 - wanted only when drawing
    from rich.live import Live  # noqa: PLC0415

    remark: list[RenderableType] = []
    try:
        with Live(console=render.out(), auto_refresh=False, transient=False) as live:
            while True:
                end = "[dim]Ctrl-C ends this view, not the yard[/]"
                live.update(Group(*render.apart([*views(found), *remark, end])), refresh=True)
                time.sleep(interval_s)
                try:
                    found, remark = client.get("status"), []
                except NotThereError as error:
                    remark = [f"[bold red]{render.escaped(str(error))}[/] (the figures above are the last known)"]
    except KeyboardInterrupt:
        return


def views(found: dict[str, Any]) -> list[RenderableType]:
    """The status as tables."""
    workers = found.get("workers", [])
    count = f"{len(workers)} router {'worker' if len(workers) == 1 else 'workers'}"
    up = f"[bold]{found['url']}[/]  up {render.seconds(found['uptime_s'])}"
    device = _device(found.get("device"))
    head = render.flowing(up, f"table {found['generation']}", count, *([device] if device else ()))
    parts: list[RenderableType] = [head]
    for model in found["models"]:
        parts.append(_model(model))
        if model.get("pause"):
            parts.append(f"the route of {model['model']} is {pause_text(model['pause'])}")
    if found["engines"]:
        parts.append(_engines(found["engines"]))
    if drifts := found.get("drift"):
        from serving.commands.drift import status_line  # noqa: PLC0415 - for those who watch

        parts.append("\n".join(map(status_line, drifts)))
    parts += [f"[yellow]! {render.escaped(problem)}[/]" for problem in found.get("problems", [])]
    return parts


def _device(device: dict[str, Any] | None) -> str:
    if not device:
        return ""
    name = device.get("name") or device["device"]
    text = render.escaped(str(name))
    if device.get("utilisation") is not None:
        text += f" {100 * device['utilisation']:.0f}%"
    if device.get("memory_total_bytes") and device.get("memory_used_bytes") is not None:
        text += f" {render.size(device['memory_used_bytes'])}/{render.size(device['memory_total_bytes'])}"
    return text


def _model(model: dict[str, Any]) -> RenderableType:
    names = {label: name for name, label in model.get("aliases", {}).items()}
    rows: list[tuple[str, ...]] = []
    for version in model["versions"]:
        label = version["label"]
        alias = f" [dim]{names[label]}[/]" if label in names else ""
        rows.append(
            (
                f"[bold]{version['ref']}[/]{alias}",
                render.state(version["state"]),
                render.percent(version["weight"]),
                render.number(version["inflight"]),
                render.number(version["requests"]),
                f"[red]{version['failures']}[/]" if version["failures"] else "0",
                render.number(version["tokens_per_second"], 1),
                render.seconds(version["ttft_p50_s"]),
                render.seconds(version["ttft_p95_s"]),
                render.money(version["cost_per_1k_requests"], ""),
            )
        )
    columns = ["version", "state", ">route", ">in flight", ">requests", ">failed", ">tokens/s"]
    currency = next((version["currency"] for version in model["versions"] if version.get("currency")), "")
    columns += [">TTFT p50", ">TTFT p95", f">{currency} per 1k requests"]
    title = f"{model['model']}  route {model['revision']}: {render.weights(model['route'])}"
    if segments := model.get("segments"):
        title += f"; segments {', '.join(segments)}"
    if shadows := model.get("shadows"):
        title += f"; shadow {', '.join(f'{label} {render.percent(sample)}' for label, sample in shadows.items())}"
    return render.table(columns, rows, title=title)


def _engines(engines: list[dict[str, Any]]) -> RenderableType:
    columns = ["replica", "engine", "state", "address", ">pid", ">restarts", ">in flight", ">memory"]
    rows = [
        [
            one["id"],
            one["engine"],
            render.state(one["state"]),
            f"{one['host']}:{one['port']}",
            str(one["pid"] or "-"),
            str(one["restarts"]),
            render.number(one["inflight"]),
            render.size(one["resident_bytes"]),
        ]
        for one in engines
    ]
    if any(one["last_error"] for one in engines):
        columns.append("last error")
        for row, one in zip(rows, engines, strict=True):
            row.append(render.escaped((one["last_error"].strip().splitlines() or [""])[-1][:80]))
    return render.table(columns, rows, title="engines")
