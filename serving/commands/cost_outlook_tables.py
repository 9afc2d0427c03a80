"""Forecast, budgets and dearer requests as tables.

Owns: columns and sentences. Never: figures, which are the control plane's.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from serving.commands import render

if TYPE_CHECKING:
    from rich.console import RenderableType

STYLES: Final = {"ok": "green", "warn": "yellow", "over": "bold red", "anomaly": "bold red", "usual": "green"}
OUTLOOKS: Final = {
    "within": "will hold",
    "possible": "may not hold",
    "likely": "is not expected to hold",
    "certain": "will not hold",
    "unknown": "no forecast yet",
}
CAUSES: Final = {
    "larger_outputs": "larger outputs",
    "larger_prompts": "larger prompts",
    "slower_engine": "slower engine",
    "lower_occupancy": "lower batch occupancy",
    "more_idle": "more idle time",
    "more_failures": "more requests without an answer",
    "price_change": "changed price",
    "unknown": "no single cause",
}
NO_BUDGETS: Final = "there are no budgets: `budgets: [{name: team, amount: 500}]` in the configuration sets one"


def forecast(found: dict[str, Any]) -> list[RenderableType]:
    """The month's end."""
    month = datetime.fromtimestamp(found["start"], UTC).strftime("%B %Y")
    currency = found["currency"]
    spent = f"{month}: {render.money(found['spent'], currency)} spent, idle time included"
    if found["expected"] is None:
        return [spent, f"no forecast: {found['rests_on']}"]
    lines: list[RenderableType] = [spent, f"expected at its end: [bold]{render.money(found['expected'], currency)}[/]"]
    if found["low"] is not None:
        low, high = render.money(found["low"], ""), render.money(found["high"], "")
        lines.append(f"four times in five between {low} and {high}")
    return ["\n".join(map(str, [*lines, f"it rests on {found['rests_on']}"]))]


def budgets(found: dict[str, Any]) -> list[RenderableType]:
    """One row per budget."""
    if not found["budgets"]:
        return [render.escaped(NO_BUDGETS)]
    rows = [
        (
            f"[bold]{render.escaped(one['name'])}[/]",
            render.escaped(one["of"]),
            one["period"],
            render.money(one["amount"], ""),
            render.money(one["spent"], ""),
            f"{one['used']:.0%}",
            render.money(one["forecast"]["expected"], ""),
            _styled(one["state"]),
            "" if one["state"] == "over" else OUTLOOKS[one["outlook"]],
        )
        for one in found["budgets"]
    ]
    columns = ("budget", "of", "per", ">amount", ">spent", ">used", ">forecast", "state", "outlook")
    return [render.table(columns, rows, title=f"budgets, {found['currency']}, basis allocated")]


def anomalies(found: dict[str, Any]) -> list[RenderableType]:
    """One row per version, and the factors of those that became dearer."""
    if not found["findings"]:
        return ["no version was asked anything in the last 24 hours"]
    judged = [one for one in found["findings"] if one["verdict"] != "too_little"]
    parts: list[RenderableType] = []
    if judged:
        rows = [
            (
                f"[bold]{render.escaped(one['version'])}[/]",
                _styled(one["verdict"]),
                render.money(one["per_1k"], ""),
                render.money(one["usual_per_1k"], ""),
                f"{one['ratio']:.2f}",
                f"{one['ratio_alarm']:.2f}",
                str(one["days"]),
                CAUSES[one["cause"]] if one["verdict"] == "anomaly" else "",
            )
            for one in judged
        ]
        columns = ("version", "verdict", ">per 1k now", ">usual", ">ratio", ">alarm from", ">days", "cause")
        parts.append(render.table(columns, rows, title=f"cost per 1k requests, {found['currency']}, basis allocated"))
    parts += [_factors(one) for one in judged if one["verdict"] == "anomaly"]
    quiet = [one for one in found["findings"] if one["verdict"] == "too_little"]
    parts += [f"{render.escaped(one['version'])}: too little to judge: {one['reason']}" for one in quiet]
    return parts


def _factors(one: dict[str, Any]) -> RenderableType:
    rows = [
        (
            CAUSES[part["cause"]],
            part["unit"],
            f"{part['before']:,.4g}",
            f"{part['after']:,.4g}",
            f"{math.exp(part['log_change']):.2f}",
        )
        for part in one["factors"]
    ]
    hours = round((one["stop"] - one["start"]) / 3600)
    title = f"{one['version']}: the last {hours} hours to {render.moment(one['stop'])}, by what drives cost"
    return render.table(("factor", "measured as", ">before", ">now", ">times"), rows, title=title)


def _styled(word: str) -> str:
    return f"[{STYLES[word]}]{word}[/]" if word in STYLES else word
