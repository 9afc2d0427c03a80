"""`modelyard drift`: how far live traffic is from its reference, and pinning references.

Owns: the tables. Never: figures and verdicts, which are the control plane's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from registry import terminal
from registry.terminal import ExitCode, UserError
from serving.commands import render
from serving.commands.client import AdminClient
from serving.commands.options import AdminUrl, Json, StateDirectory, application

if TYPE_CHECKING:
    from rich.console import RenderableType

CHECK_TIMEOUT_S = 900.0
"""A check or a pin runs at low priority; the control plane ends one that takes too long."""
STYLES = {"act": "bold red", "watch": "yellow", "none": "green", "inconclusive": "dim"}
KINDS = {"data": "inputs (data drift)", "output": "outputs (output drift)", "concept": "quality (concept drift)"}


class _ShowByDefault(TyperGroup):
    """`drift`, `drift MODEL` and `drift --json` mean `drift show …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, "--help"):
            args = ["show", *args]
        return list(super().parse_args(ctx, args))


app = application("How far live traffic is from its reference: `drift [MODEL]` shows it.", cls=_ShowByDefault)
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Only this model.", show_default=False)]
ModelName = Annotated[str, typer.Argument(metavar="MODEL")]


@app.command()
def show(
    model: Model = "",
    gate: Annotated[bool, typer.Option("--gate", help="Exit with 1 on act, with 3 where it is inconclusive.")] = False,
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """The latest checks: verdicts, effects with intervals, and the samples that moved the score most.

    The effect is PSI less its mean under no drift; watch from 0.1, act from 0.25 (`drift:` in the configuration).

    \b
    Examples:
      modelyard drift
      modelyard drift assistant --json --gate
      modelyard drift show assistant
    """
    found = AdminClient.find(admin_url, state_dir).get("drift", model=model)
    _print(found, as_json)
    if gate:
        _gate(found)


@app.command()
def check(
    model: Model = "", as_json: Json = False, admin_url: AdminUrl = None, state_dir: StateDirectory = None
) -> None:
    """Compare windows with their references now, and show what was found.

    Example: modelyard drift check assistant
    """
    client = AdminClient.find(admin_url, state_dir, timeout_s=CHECK_TIMEOUT_S)
    with terminal.busy("comparing windows"):
        found = client.send("POST", "drift", "check", query={"model": model})
    _print(found, as_json)


@app.command()
def pin(
    model: ModelName,
    since: Annotated[str, typer.Option(metavar="SPAN", help="24h, 7d or Unix seconds.")] = "",
    until: Annotated[str, typer.Option(metavar="SPAN", help="The same [default: now].")] = "",
    run: Annotated[str, typer.Option(metavar="RUN", help="A finished evaluation run in place of a window.")] = "",
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """Make a window of sampled traffic, or an evaluation run, what the model's traffic is compared with.

    Pin a time at which all was well. Measured figures are kept, never a text.

    \b
    Examples:
      modelyard drift pin assistant --since 24h
      modelyard drift pin assistant --since 9d --until 2d
      modelyard drift pin assistant --run regression-core-assistant@v1
    """
    if bool(since) == bool(run):
        raise UserError("say which reference: either --since (and --until), or --run")
    client = AdminClient.find(admin_url, state_dir, timeout_s=CHECK_TIMEOUT_S)
    with terminal.busy("reading samples"):
        body = {"since": since, "until": until, "run": run}
        found = client.send("PUT", "drift", "references", model, body=body)
    terminal.print_json(found) if as_json else render.show(_reference(model, found))


@app.command()
def unpin(
    model: ModelName, as_json: Json = False, admin_url: AdminUrl = None, state_dir: StateDirectory = None
) -> None:
    """Remove a model's reference: its traffic is watched no longer.

    Example: modelyard drift unpin assistant
    """
    found = AdminClient.find(admin_url, state_dir).send("DELETE", "drift", "references", model)
    if as_json:
        terminal.print_json(found)
    else:
        render.show(f"{model} is watched no longer" if found["removed"] else f"{model} had no reference")


def _print(found: dict[str, Any], as_json: bool) -> None:
    terminal.print_json(found) if as_json else render.show(*views(found))


def _gate(found: dict[str, Any]) -> None:
    verdicts = {one["verdict"] for one in found["drifts"]}
    if "act" in verdicts:
        raise SystemExit(int(ExitCode.GATE_FAILED))
    if not verdicts or "inconclusive" in verdicts:
        raise SystemExit(int(ExitCode.INCONCLUSIVE))


def views(found: dict[str, Any]) -> list[RenderableType]:
    """Everything as tables."""
    parts: list[RenderableType] = []
    if found["problem"]:
        parts.append(f"[yellow]! the last round of checks failed: {render.escaped(found['problem'])}[/]")
    if not found["references"]:
        return [
            *parts,
            "nothing is watched: pin a reference with `modelyard drift pin MODEL --since 24h` (docs/drift.md)",
        ]
    checked = {one["model"] for one in found["drifts"]}
    for model, one in found["references"].items():
        parts.append(_reference(model, one))
        if model not in checked:
            parts.append(f"[dim]{model}: no traffic was compared yet[/]")
    for one in found["drifts"]:
        parts += _drift(one)
    parts += [_episode(one) for one in found["episodes"] if not one.get("ended_at")]
    return parts


def _reference(model: str, one: dict[str, Any]) -> str:
    embedded = f", embeddings by {one['embedder']}" if one.get("embedder") else ""
    samples = f"{render.number(one['samples'])} of {render.number(one['found'])} samples"
    return f"{model}: reference {render.escaped(one['name'])} ({samples}{embedded}), pinned {_when(one['pinned_at'])}"


def _when(unix_s: float) -> str:
    return render.moment(unix_s)


def _verdict(name: str) -> str:
    return f"[{STYLES.get(name, '')}]{name}[/]" if name in STYLES else name


def headline(one: dict[str, Any]) -> str:
    """One version's drift in one line."""
    parts = [f"{kind} {_verdict(verdict)}" for kind, verdict in one["kinds"].items()]
    moved = [feature["feature"] for feature in one["features"] if feature["verdict"] == "act"]
    said = f"[bold]{one['model']}@{one['version']}[/] drift {_verdict(one['verdict'])}"
    if one["verdict"] == "inconclusive" and one.get("needed"):
        said += f", about {render.number(one['needed'])} more samples needed"
    return f"{said}  {', '.join(parts)}" + (f"  ({', '.join(moved)})" if moved else "")


def status_line(one: dict[str, Any]) -> str:
    """The same for `modelyard status`."""
    features = [{"feature": name, "verdict": "act"} for name in one["features"]]
    return headline({**one, "features": features})


def _drift(one: dict[str, Any]) -> list[RenderableType]:
    window = f"{_when(one['since'])} to {_when(one['until'])}" if one["until"] else "no samples"
    facts = f"{render.number(one['current_n'])} samples, {window}, against {render.number(one['reference_n'])} "
    parts: list[RenderableType] = [f"{headline(one)}\n{facts}of {render.escaped(one['against'])}"]
    for kind, name in KINDS.items():
        rows = [_row(feature) for feature in one["features"] if feature["kind"] == kind]
        if rows:
            columns = (name, "verdict", ">effect", ">interval", ">q", ">noise", ">n", "what moved")
            parts.append(render.table(columns, rows))
    if one["samples"]:
        parts.append(_suspects(one["samples"]))
    return parts + [f"[dim]{render.escaped(remark)}[/]" for remark in one["remarks"]]


def _row(feature: dict[str, Any]) -> tuple[str, ...]:
    verdict = _verdict(feature["verdict"])
    if feature["verdict"] == "inconclusive":
        more = [f"{feature['needed']} more"] if feature.get("needed") else []
        if feature.get("needed_reference"):
            more.append(f"{feature['needed_reference']} more in the reference")
        verdict += f" ({', '.join(more)})" if more else ""
    sizes = f"{render.number(feature['reference_n'])} / {render.number(feature['current_n'])}"
    low, high = feature.get("low"), feature.get("high")
    return (
        f"[bold]{feature['feature']}[/]",
        verdict,
        render.number(feature.get("effect"), 3),
        f"{low:.3f} to {high:.3f}" if low is not None and high is not None else "-",
        _probability(feature.get("q")),
        render.number(feature.get("noise"), 3),
        sizes,
        _moved(feature),
    )


def _probability(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _moved(feature: dict[str, Any]) -> str:
    statistics = feature.get("statistics", {})
    if "mean_difference" in statistics:
        low, high = statistics["mean_difference_low"], statistics["mean_difference_high"]
        return f"mean {statistics['mean_difference']:+.3f} ({low:+.3f} to {high:+.3f})"
    if "auc" in statistics:
        return f"AUC {statistics['auc']:.2f} ({statistics['auc_low']:.2f} to {statistics['auc_high']:.2f})"
    if feature["verdict"] not in ("watch", "act"):
        return ""
    moves = feature.get("moves", [])[:2]
    said = (f"{render.escaped(one['name'])}: {one['reference']:.0%} to {one['current']:.0%}" for one in moves)
    return "; ".join(said)


def _suspects(samples: list[dict[str, Any]]) -> RenderableType:
    texts = any(one.get("text") for one in samples)
    rows = [
        (
            render.escaped(one["id"]),
            f"{one['score']:.1f}",
            render.escaped("; ".join(one["why"])),
            *((render.escaped(" ".join(one.get("text", "").split())[:60]),) if texts else ()),
        )
        for one in samples
    ]
    return render.table(("moved the score most", ">by", "because", *(("text",) if texts else ())), rows)


def _episode(one: dict[str, Any]) -> str:
    told = {
        "off": "no webhook is configured",
        "pending": f"the webhook is being told (attempt {one.get('attempts', 0) + 1})",
        "delivered": "the webhook was told",
        "failed": f"the webhook was not told: {render.escaped(one.get('last_error', ''))}",
    }[one.get("delivery", "off")]
    return f"act since {_when(one['began_at'])}: {one['model']}@{one['version']}; {told}"
