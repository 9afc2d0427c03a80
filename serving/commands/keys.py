"""`modelyard keys`: who may use the yard.

Owns: a key's terms as options, showing a key once. Never: keeping it, checking it.
"""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any

import typer

from registry import terminal
from registry.terminal import UserError
from serving.commands import render
from serving.commands.client import AdminClient
from serving.commands.options import AdminUrl, Json, StateDirectory, group

app = group("API keys: who may use what, how much and until when.")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhdwy])")
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0, "y": 365 * 86_400.0}
STATE_STYLES = {"active": "[green]active[/]", "expired": "[yellow]expired[/]", "revoked": "[dim]revoked[/]"}


def span_s(text: str) -> float:
    """Seconds in `30d`, `12h`, `90m`. Raises UserError."""
    found = _SPAN.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise UserError(f"--expires-in {text!r} is no span of time: write a number and s, m, h, d, w or y, e.g. 30d")
    return float(found[1]) * _UNIT_S[found[2]]


def limit(metavar: str, what: str) -> Any:
    """An option for a bound that is not there by default."""
    return typer.Option(metavar=metavar, min=0, show_default=False, help=f"{what} [no limit].")


@app.command("create")
def create(
    name: Annotated[str, typer.Option(metavar="TEXT", show_default=False, help="Whose it is or what it is for.")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCOPE",
            help="inference (requests to models) or admin (the admin API); repeat for both [inference].",
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="A model that it may use; repeat for more [all].")
    ] = None,
    expires_in: Annotated[str, typer.Option(metavar="SPAN", show_default=False, help="30d, 12h, 90m, … [never].")] = "",
    priority: Annotated[
        str, typer.Option(metavar="CLASS", help="The best class of its requests: interactive or batch.")
    ] = "interactive",
    requests_per_minute: Annotated[int, limit("N", "Requests a minute")] = 0,
    tokens_per_minute: Annotated[int, limit("N", "Tokens a minute, of prompts and answers")] = 0,
    concurrency: Annotated[int, limit("N", "Requests at a time")] = 0,
    budget_tokens: Annotated[int, limit("N", "Tokens per --budget-period")] = 0,
    budget_engine_seconds: Annotated[float, limit("S", "In-flight seconds at engines per --budget-period")] = 0.0,
    budget_period: Annotated[str, typer.Option(metavar="PERIOD", help="day, month or total.")] = "month",
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """Make an API key. It is shown once, here: only its hash is kept.

    From the first key on, requests to models need one; revoking the last key does not change that. Clients send it as
    `Authorization: Bearer KEY` (OpenAI's SDKs: api_key) or as `x-api-key`. It is in force when this command ends.

    \b
    Examples:
      modelyard keys create --name alice
      modelyard keys create --name nightly --priority batch --model assistant --tokens-per-minute 100000
      modelyard keys create --name ci --scope admin --expires-in 30d
      export OPENAI_API_KEY=$(modelyard keys create --name me --json | jq -r .secret)
    """
    body: dict[str, Any] = {
        "name": name,
        "scopes": scope or ["inference"],
        "models": model or [],
        "expires_in_s": span_s(expires_in) if expires_in else None,
        "priority": priority,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrency_max": concurrency,
        "budget_tokens": budget_tokens,
        "budget_engine_s": budget_engine_seconds,
        "budget_period": budget_period,
    }
    found = AdminClient.find(admin_url, state_dir).send("POST", "keys", body=body)
    if as_json:
        terminal.print_json(found)
        return
    key = found["key"]
    sys.stdout.write(f"{found['secret']}\n")  # alone on its line, whatever the terminal's width
    until = f"until {render.moment(key['expires_at'])}" if key["expires_at"] else "until it is revoked"
    what = f"{_title(key)} opens {_reach(key)} {until}; the key above is not shown again"
    typer.echo(what, err=True)
    _tell_late(found)


@app.command("list")
def list_keys(as_json: Json = False, admin_url: AdminUrl = None, state_dir: StateDirectory = None) -> None:
    """Every key ever made: what it may do, whether it still does, and the end of it for telling keys apart.

    \b
    Examples:
      modelyard keys list
      modelyard keys list --json | jq '.[] | select(.state == "active") | {id, name, expires_at}'
    """
    found = AdminClient.find(admin_url, state_dir).get("keys")
    if as_json:
        terminal.print_json(found)
        return
    rows = [
        (
            f"[bold]{one['id']}[/]",
            render.escaped(one["name"]) or "-",
            STATE_STYLES[one["state"]],
            one["key"],
            ", ".join(one["scopes"]),
            ", ".join(one["models"]) or "all",
            _limits(one),
            render.moment(one["created_at"]),
            render.escaped(one["created_by"]),
            render.moment(one["expires_at"]) if one["expires_at"] else "never",
        )
        for one in found
    ]
    columns = ("id", "name", "state", "key", "scopes", "models", "limits", "created", "by", "expires")
    nothing = "no key yet: `modelyard keys create --name NAME` makes one"
    render.show(render.table(columns, rows) if rows else nothing)


@app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, key_…, as `keys list` shows it.")],
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """Take a key out of use for good.

    No request with it is taken any more when this command ends; streams that began are finished.

    \b
    Example:
      modelyard keys revoke key_4f1d2c3b5a69
    """
    found = AdminClient.find(admin_url, state_dir).send("POST", "keys", key_id, "revoke")
    if as_json:
        terminal.print_json(found)
        return
    render.show(f"{render.escaped(_title(found['key']))} is revoked")
    _tell_late(found)


def _title(key: dict[str, Any]) -> str:
    return f"{key['id']} ({key['name']})" if key["name"] else str(key["id"])


def _reach(key: dict[str, Any]) -> str:
    """What a key opens, in words."""
    models = f"the {'model' if len(key['models']) == 1 else 'models'} {', '.join(key['models'])}"
    places = {"inference": models if key["models"] else "every model", "admin": "the admin API"}
    return " and ".join(places[scope] for scope in key["scopes"])


def _limits(key: dict[str, Any]) -> str:
    parts = [
        f"{key[field]:,} {unit}"
        for field, unit in (
            ("requests_per_minute", "requests/min"),
            ("tokens_per_minute", "tokens/min"),
            ("concurrency_max", "at a time"),
        )
        if key[field]
    ]
    period = "in total" if key["budget_period"] == "total" else f"a {key['budget_period']}"
    parts += [f"{key['budget_tokens']:,} tokens {period}"] if key["budget_tokens"] else []
    parts += [f"{key['budget_engine_s']:,g} engine seconds {period}"] if key["budget_engine_s"] else []
    parts += ["batch"] if key["priority"] == "batch" else []
    return "\n".join(parts) or "-"


def _tell_late(found: dict[str, Any]) -> None:
    """Say which workers do not know yet: until they do, the change is not in force there."""
    late = ", ".join(found["waiting_for"])
    if late:
        typer.echo(f"not confirmed by {late} yet: it is in force there as soon as they can be reached", err=True)
