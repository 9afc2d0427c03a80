"""The cost statement as tables and as CSV.

Owns: columns and headings. Never: arithmetic of money; lines sum to their total because the control plane makes them
so.
"""

from __future__ import annotations

import csv
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TextIO

from serving.commands import render

if TYPE_CHECKING:
    from rich.console import RenderableType

BASES: Final = {
    "allocated": "held, busy or not",
    "busy": "with a request in flight",
    "energy": "metered energy",
}
METHODS: Final = {
    "inflight": "divided by requests in flight",
    "sm": "divided by processes' SM time",
    "tokens": "divided by tokens",
    "cpu_time": "divided by engines' CPU time",
}
CSV_FIELDS: Final = (
    *("device", "device_kind", "basis", "method", "currency", "start", "stop", "kind", "model", "version", "outcome"),
    *("key", "segment", "hour", "seconds", "amount"),
)
NANO_DIGITS: Final = 9


def statement(found: dict[str, Any]) -> list[RenderableType]:
    """Usage, the bills, unit costs, storage, what it would have cost hosted."""
    by = list(found["by"])
    parts: list[RenderableType] = [f"{render.moment(found['start'])} to {render.moment(found['stop'])}"]
    if found["usage"]:
        parts.append(_usage(found["usage"], [name for name in by if name != "outcome"]))
    if found.get("tokens"):
        parts.append(_tokens(found["tokens"]))
    parts += [_bill(one, by) for one in found["bills"]]
    if found["unit_costs"]:
        parts.append(_units(found["unit_costs"], [name for name in by if name != "outcome"]))
    if any(one["nano"] for one in found.get("storage") or ()):
        parts.append(_storage(found["storage"]))
    if found.get("hosted"):
        parts += _hosted(found["hosted"])
    if not found["bills"]:
        parts.append("nothing was billed yet: the first figures come some seconds after the start")
    if found.get("usage_from") and not found["unit_costs"] and found["bills"]:
        parts.append(f"usage before {render.moment(found['usage_from'])} is not known by hour: no cost per unit")
    return parts


def write_csv(found: dict[str, Any], to: TextIO) -> None:
    """One row per line of each bill, with everything that says which bill it is of. Times are UTC, ISO 8601."""
    writer = csv.writer(to, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for bill in found["bills"]:
        head = [bill[name] for name in CSV_FIELDS[:5]] + [_utc(bill["start"]), _utc(bill["stop"])]
        for line in bill["lines"]:
            hour = "" if line["hour"] is None else _utc(line["hour"])
            named = [line[name] for name in ("kind", "model", "version", "outcome", "key", "segment")]
            writer.writerow([*head, *named, hour, f"{line['seconds']:.6f}", exact(line["nano"])])


def exact(nano: int) -> str:
    """An amount to its last billionth."""
    return f"{'-' if nano < 0 else ''}{abs(nano) // 10**NANO_DIGITS}.{abs(nano) % 10**NANO_DIGITS:0{NANO_DIGITS}d}"


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _named(one: dict[str, Any], name: str) -> str:
    """The cell of a dimension."""
    if name == "hour":
        return "-" if one["hour"] is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(one["hour"]))
    value = str(one[name])
    if not value:
        return "(no key)" if name == "key" else ""
    return f"[bold]{render.escaped(value)}[/]" if name == "version" else render.escaped(value)


def _usage(usage: list[dict[str, Any]], by: list[str]) -> RenderableType:
    outcomes = sorted({name for one in usage for name in one["requests"]}, key=lambda name: (name != "completed", name))
    rows = [
        (
            *(_named(one, name) for name in by),
            *(render.number(one["requests"].get(name, 0)) for name in outcomes),
            render.number(one["prompt_tokens"]),
            render.number(one["cached_tokens"]),
            render.number(one["completion_tokens"]),
        )
        for one in usage
    ]
    columns = (*by, *(f">{name}" for name in outcomes), ">prompt tokens", ">of them cached", ">completion tokens")
    return render.table(columns, rows, title="usage")


def _tokens(hosted: list[dict[str, Any]]) -> RenderableType:
    rows = [
        (
            f"[bold]{one['version']}[/]",
            render.number(one["prompt_tokens"]),
            render.number(one["completion_tokens"]),
            exact(one["nano"]),
        )
        for one in hosted
    ]
    columns = ("", ">prompt tokens", ">completion tokens", f">{hosted[0]['currency']}")
    return render.table(columns, rows, title="hosted: tokens (at the provider's price per token; on no bill below)")


def _bill(bill: dict[str, Any], by: list[str]) -> RenderableType:
    currency = bill["currency"]
    unit = "GPU-seconds" if bill["device_kind"] == "gpu" else "core-seconds"
    rows = [(*_line_cells(line, by), render.number(line["seconds"], 1), exact(line["nano"])) for line in bill["lines"]]
    seconds = sum(line["seconds"] for line in bill["lines"])
    total = ("[bold]total[/]", *([""] * (len(by) - 1)))
    rows.append((*total, render.number(seconds, 1), f"[bold]{exact(bill['total_nano'])}[/]"))
    title = f"{bill['device']}: {bill['basis']} ({BASES[bill['basis']]}; {METHODS[bill['method']]})"
    if bill.get("fallback_s"):
        title += f"; for {render.number(bill['fallback_s'], 1)} s by requests in flight, as there was no reading"
    return render.table((*by, f">{unit}", f">{currency}"), rows, title=title)


def _line_cells(line: dict[str, Any], by: list[str]) -> list[str]:
    """The cells that say whose a line is; idle time names the version whose memory was held."""
    if line["kind"] == "version":
        return [_named(line, name) for name in by]
    cells = ["" if name in ("key", "segment", "outcome") else _named(line, name) for name in by]
    place = next((at for at, name in enumerate(by) if name in ("version", "model")), 0)
    cells[place] = f"{line['kind']}: {cells[place]}" if cells[place] and by[place] != "hour" else line["kind"]
    return cells


def _units(units: list[dict[str, Any]], by: list[str]) -> RenderableType:
    has_good = any(one.get("per_1k_good") is not None for one in units)
    several = len({one.get("device") for one in units}) > 1
    rows = [
        (
            *(_named(one, name) for name in by),
            *([one["device"]] if several else []),
            one["basis"],
            render.money(one["per_1k_requests"], ""),
            *([render.money(one.get("per_1k_good"), "")] if has_good else []),
            render.money(one["per_1m_input_tokens"], ""),
            render.money(one["per_1m_cached_tokens"], ""),
            render.money(one["per_1m_output_tokens"], ""),
        )
        for one in units
    ]
    columns = (
        *by,
        *(["device"] if several else []),
        "basis",
        ">per 1k requests",
        *([">per 1k in SLO"] if has_good else []),
        ">per 1M input tokens",
        ">per 1M cached",
        ">per 1M output",
    )
    return render.table(columns, rows, title=f"unit costs, {units[0]['currency']}")


def _storage(storage: list[dict[str, Any]]) -> RenderableType:
    rows = [
        (f"[bold]{one['version']}[/]", render.size(one["bytes"]), f"{one['gb_months']:.4g}", exact(one["nano"]))
        for one in storage
    ]
    columns = ("version", ">on disk now", ">GB-months", f">{storage[0]['currency']}")
    return render.table(columns, rows, title="artifacts on disk (on no bill above)")


def _hosted(hosted: dict[str, Any]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if hosted["problem"]:
        return [f"what it would have cost hosted: {render.escaped(hosted['problem'])}"]
    if hosted["costs"]:
        rows = [
            (
                f"[bold]{render.escaped(one['model'])}[/]",
                render.money(one["input_nano"] / 1e9, ""),
                render.money(one["cached_nano"] / 1e9, "")
                + ("" if one["is_cached_apart"] or not one["cached_nano"] else " *"),
                render.money(one["output_nano"] / 1e9, ""),
                f"[bold]{render.money(one['amount'], '')}[/]",
                render.money(one["per_1k_requests"], ""),
                "-" if one["ratio"] is None else f"{one['ratio']:.3g}",
            )
            for one in hosted["costs"]
        ]
        currency = hosted["costs"][0]["currency"]
        columns = ("model", ">input", ">cached", ">output", f">all, {currency}", ">per 1k requests", ">here / there")
        title = f"the same tokens hosted, by {hosted['source']}; here on the basis allocated"
        parts.append(render.table(columns, rows, title=title))
    parts += [render.escaped(note) for note in hosted["notes"]]
    return parts
