"""Charts as values: what the browser draws, and the same figures as a table for whoever cannot see a picture.

Owns: the shape that `static/charts.js` reads, and the table beside it. Never: drawing, colours (the style sheet's),
where figures come from.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from monitoring.console.words import NOTHING, money, seconds, when

Unit = Literal["share", "seconds", "money", "count", "score"]
Shape = Literal["line", "step", "bars"]
FIRST_SHOWN: Final = 0.02
LAST_SHOWN: Final = 0.999
"""A distribution is drawn between about these shares."""
HALF: Final = 0.5


@dataclass(frozen=True, slots=True)
class Series:
    """One line, or one layer of bars."""

    name: str
    values: tuple[float | None, ...]
    colour: int = 0
    """Which of the style sheet's colours; 0 is the neutral one."""
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture of some series over one axis. `summary` says in a sentence what it shows."""

    id: str
    title: str
    summary: str
    x: tuple[float, ...]
    series: tuple[Series, ...]
    shape: Shape = "line"
    unit: Unit = "count"
    over: Literal["time", "seconds"] = "time"
    """What the axis below is: Unix seconds, or a duration on a logarithmic scale."""
    x_name: str = "Time (UTC)"
    currency: str = ""
    stacked: bool = False
    top: float | None = None
    """Where the axis at the side ends; None fits it to the figures."""
    marks: tuple[tuple[float, str], ...] = field(default=())
    """Upright lines at these places."""

    def payload(self) -> dict[str, Any]:
        """What the browser draws. Stacked layers come with what lies below them added."""
        values = [list(one.values) for one in self.series]
        if self.stacked:
            for below, above in itertools.pairwise(values):
                above[:] = [(one or 0.0) + (other or 0.0) for one, other in zip(below, above, strict=True)]
        return {
            "data": [list(self.x), *values],
            "names": [one.name for one in self.series],
            "colours": [one.colour for one in self.series],
            "dashed": [one.dashed for one in self.series],
            "shape": self.shape,
            "unit": self.unit,
            "over": self.over,
            "xName": self.x_name,
            "currency": self.currency,
            "stacked": self.stacked,
            "top": self.top,
            "marks": [list(one) for one in self.marks],
        }

    def header(self) -> list[str]:
        """Of the table."""
        return [self.x_name, *(one.name for one in self.series)]

    def rows(self) -> list[list[str]]:
        """Of the table, one for every place on the axis."""
        at: Callable[[float], str] = when if self.over == "time" else seconds
        return [
            [at(place), *(figure(one.values[index], self.unit, self.currency) for one in self.series)]
            for index, place in enumerate(self.x)
        ]

    @property
    def is_empty(self) -> bool:
        """Nothing would be seen."""
        return not self.x or all(value is None for one in self.series for value in one.values)


def figure(value: float | None, unit: Unit, currency: str = "") -> str:
    """A value in words, as tables show it."""
    match unit:
        case _ if value is None or not math.isfinite(value):
            return NOTHING
        case "share":
            return f"{100 * value:.4g}%"
        case "seconds":
            return seconds(value)
        case "money":
            return money(value, currency)
        case "score":
            return f"{value:.3f}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.3g}"


def weights_over_time(
    revisions: Sequence[tuple[float, dict[str, int]]], *, now: float, colours: dict[str, int], model: str
) -> Chart:
    """How a model's traffic was divided as it moved. `revisions` are in order of time: when, label -> basis points."""
    labels = list(colours)
    x = (*(at for at, _ in revisions), now)
    series = []
    for label in labels:
        shares = [weights.get(label, 0) / 10_000 for _, weights in revisions]
        series.append(Series(label, (*shares, shares[-1] if shares else None), colours[label]))
    last = revisions[-1][1] if revisions else {}
    said = ", ".join(f"{label} {weight / 100:g}%" for label, weight in last.items() if weight)
    return Chart(
        "weights",
        "Traffic over time",
        f"{len(revisions)} revisions of the route of {model}; now {said or 'nothing'}.",
        x,
        tuple(series),
        shape="step",
        unit="share",
        top=1.0,
    )


def shares_within(
    name: str, title: str, distributions: Sequence[tuple[str, Sequence[float], Sequence[int]]], colours: dict[str, int]
) -> Chart | None:
    """Which share of requests was done within a time. `distributions` are (version, bucket bounds in seconds, counts
    per bucket with the last one above every bound), all with the same bounds; None where nothing was counted.

    A point is exact at a bound; between bounds nothing is known, so the lines join what is known.
    """
    counted = [one for one in distributions if sum(one[2])]
    if not counted:
        return None
    bounds = counted[0][1]
    series = []
    for version, _, counts in counted:
        total, run, shares = sum(counts), 0, []
        for count in counts[: len(bounds)]:
            run += count
            shares.append(run / total)
        series.append(Series(f"{version} (n = {total:,})", tuple(shares), colours.get(version, 0)))
    first = min(next((i for i, v in enumerate(s.values) if (v or 0) >= FIRST_SHOWN), len(bounds) - 1) for s in series)
    last = max(next((i for i, v in enumerate(s.values) if (v or 0) >= LAST_SHOWN), len(bounds) - 1) for s in series)
    cut = slice(max(0, first - 1), last + 1)
    said = "; ".join(f"{s.name}: half {_half(bounds, s.values)}" for s in series)
    return Chart(
        name,
        title,
        f"{said}.",
        tuple(bounds[cut]),
        tuple(Series(s.name, s.values[cut], s.colour, s.dashed) for s in series),
        unit="share",
        over="seconds",
        x_name="Done within",
        top=1.0,
    )


def _half(bounds: Sequence[float], shares: Sequence[float | None]) -> str:
    """Within which bound half of them lie, in words."""
    found = next((bound for bound, value in zip(bounds, shares, strict=True) if (value or 0) >= HALF), None)
    return f"within {seconds(found)}" if found is not None else f"take longer than {seconds(bounds[-1])}"
