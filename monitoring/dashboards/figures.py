"""What a dashboard's panels would show: their queries asked of a Prometheus, and the figures in words.

Owns: asking, and writing values with their units. Never: pictures, files, starting a Prometheus.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from monitoring.dashboards.expressions import needs, queries

Labels = Mapping[str, str]
Ask = Callable[[str, Mapping[str, str]], list[dict[str, Any]]]
"""(path of Prometheus' API, parameters) -> the result's series."""

SHOWN: Final = 6
"""Series of a panel that are written out; the rest is counted."""
STEPS: Final = 150
PLACE: Final = re.compile(r"\{\{\s*(\w+)\s*\}\}")
SCALES: Final = {
    "s": ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "bytes": ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
    "hertz": ((1e9, "GHz"), (1e6, "MHz"), (1.0, "Hz")),
}
SUFFIXES: Final = {"reqps": " req/s", "watt": " W", "celsius": " °C"}


@dataclass(frozen=True, slots=True)
class Series:
    """One line, figure or column of a panel."""

    name: str
    labels: Labels
    points: tuple[tuple[float, float], ...]
    """(Unix seconds, value), the last one last."""
    unit: str
    column: int = 0
    """Which of the panel's queries it answers."""

    @property
    def last(self) -> float:
        return self.points[-1][1]


@dataclass(frozen=True, slots=True)
class Shown:
    """A panel and what it shows."""

    panel: Mapping[str, Any]
    series: tuple[Series, ...]
    needs: str
    """What a yard must have for the panel to have data; "" where traffic is enough."""


@dataclass(frozen=True, slots=True)
class Window:
    """The time that is looked at."""

    start: float
    stop: float
    rate_interval: str = "1m"

    @property
    def step_s(self) -> float:
        return max(5.0, (self.stop - self.start) / STEPS)


def look(dashboard: Mapping[str, Any], panel: Mapping[str, Any], ask: Ask, window: Window) -> Shown:
    """Asks what one panel asks, with every variable at All."""
    alone = {"templating": dashboard["templating"], "panels": [panel]}
    asked = queries(alone, rate_interval=window.rate_interval, window=f"{window.stop - window.start:.0f}s")
    found: list[Series] = []
    for index, (target, (_, expr)) in enumerate(zip(panel["targets"], asked, strict=True)):
        for one in _result(ask, expr, bool(target.get("range")), window):
            points = tuple((float(at), float(value)) for at, value in one.get("values") or [one["value"]])
            kept = tuple(point for point in points if math.isfinite(point[1]))
            if kept:
                legend = target["legendFormat"]
                found.append(Series(_named(legend, one["metric"]), one["metric"], kept, _unit(panel, legend), index))
    excuses = [excuse for _, expr in asked if (excuse := needs(expr))]
    return Shown(panel, tuple(found), excuses[0] if len(excuses) == len(asked) else "")


def words(shown: Shown) -> list[str]:
    """Its figures, one line per series or per row of a table; what is missing, where there are none."""
    if not shown.series:
        text = shown.panel["fieldConfig"]["defaults"]["noValue"]
        return [f"*{text}*" + (f" (needs {shown.needs})" if shown.needs else "")]
    if shown.panel["type"] == "table":
        lines = [_row(labels, cells) for labels, cells in rows_of(shown)]
    else:
        ordered = sorted(shown.series, key=lambda series: -series.last)
        lines = [f"{series.name}: {_line(shown.panel, series)}" for series in ordered]
    more = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"and {more} more"] if more > 0 else [])]


def rows_of(shown: Shown) -> list[tuple[str, list[Series]]]:
    """A table's rows: what stands in front of the figures, and the cells that there are."""
    rows: dict[str, list[Series]] = {}
    for series in shown.series:
        rows.setdefault(subject(series.labels), []).append(series)
    return sorted(rows.items(), key=lambda row: -row[1][0].last)


def subject(labels: Labels) -> str:
    """Labels as people write them: `assistant@v1`, then the rest."""
    rest = {name: value for name, value in labels.items() if name not in ("__name__", "instance", "job") and value}
    model, version = rest.pop("model", ""), rest.pop("version", "")
    arm = (
        "" if "replica" in rest else "@".join(part for part in (model, version) if part)
    )  # a replica is called by both
    return " ".join([*([arm] if arm else []), *rest.values()]) or "all"


def value(number: float, unit: str, decimals: float | None = None) -> str:
    """A value with its unit, as Grafana would scale it."""
    if unit == "percentunit":
        return f"{100 * number:.{1 if decimals is None else int(decimals)}f}%"
    if not number:
        return "0" + SUFFIXES.get(unit, "")
    for factor, name in SCALES.get(unit, ()):
        if abs(number) >= factor or name in ("µs", "B", "Hz"):
            return f"{_figure(number / factor, decimals if factor >= 1 else None)} {name}"
    return _figure(number, decimals) + SUFFIXES.get(unit, "")


def _figure(number: float, decimals: float | None) -> str:
    if number == int(number) and abs(number) < 1e15:
        return f"{int(number):,}"
    if decimals is not None and (abs(number) >= 1 or round(number, int(decimals))):
        return f"{number:,.{int(decimals)}f}"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def _line(panel: Mapping[str, Any], series: Series) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    mapped = {key: each["text"] for mapping in defaults.get("mappings", ()) for key, each in mapping["options"].items()}
    values = [number for _, number in series.points]

    def shown(number: float) -> str:
        return mapped.get(f"{number:g}") or value(number, series.unit, defaults.get("decimals"))

    if panel["type"] == "stat" or len(values) == 1 or min(values) == max(values):
        return f"**{shown(series.last)}**"
    if mapped:
        changes = sum(one != other for one, other in pairwise(values))
        return f"**{shown(series.last)}**, changed {changes} times"
    return f"**{shown(series.last)}** ({shown(min(values))} to {shown(max(values))})"


def _named(legend: str, labels: Labels) -> str:
    return PLACE.sub(lambda match: labels.get(match[1], ""), legend)


def _row(labels: str, cells: Iterable[Series]) -> str:
    return f"{labels}: " + ", ".join(f"{cell.name} **{value(cell.last, cell.unit)}**" for cell in cells)


def _unit(panel: Mapping[str, Any], legend: str) -> str:
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"]["options"] == legend:
            return str(next(each["value"] for each in override["properties"] if each["id"] == "unit"))
    return str(panel["fieldConfig"]["defaults"]["unit"])


def _result(ask: Ask, expr: str, ranged: bool, window: Window) -> Sequence[dict[str, Any]]:
    if not ranged:
        return ask("query", {"query": expr, "time": f"{window.stop:.3f}"})
    return ask(
        "query_range",
        {
            "query": expr,
            "start": f"{window.start:.3f}",
            "end": f"{window.stop:.3f}",
            "step": f"{window.step_s:.3f}",
        },
    )
