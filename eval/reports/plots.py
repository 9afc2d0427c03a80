"""The plots of a report.

Owns: what each plot shows and how it is drawn. Never: computing what it shows, the page around it, how a figure becomes
part of a page (svg.py).

The page's colours are two of Okabe and Ito's, told apart by every kind of colour vision; baseline and candidate also
differ in line and marker, so that nothing hangs on colour alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from eval.reports import svg, words
from eval.reports.svg import BASELINE, CANDIDATE, INK, MARGIN, MUTED, Drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE_IN: Final = 9.0
NARROW_IN: Final = 4.6
_NAMES_AT: Final = -0.62
"""Where the names of rows begin, left of the axes, in their widths."""
_SECTIONS: Final = {"overall": "", "gate": "", "scorer": "by scorer", "slice": "by slice"}
_MARKER: Final = {"overall": "D", "gate": "D", "scorer": "s", "slice": "o"}
ROWS_MAX: Final = 40
"""Beyond these the forest plot is unreadable; the table has them all."""
_CURVE_POINTS: Final = 200
_BINS: Final = 10

_LOGARITHMIC_FROM: Final = 30
"""Times that differ by more than this factor need a logarithmic axis."""

Width = Literal["wide", "narrow"]


@dataclass(frozen=True, slots=True)
class _Look:
    colour: str
    marker: str
    style: str | tuple[float, tuple[float, float]]


_LOOKS: Final = (_Look(BASELINE, "o", "solid"), _Look(CANDIDATE, "D", (0, (4, 1.5))))


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of the forest plot: shares of the score, not points."""

    kind: Literal["overall", "gate", "scorer", "slice"]
    name: str
    n: int
    difference: float
    low: float
    high: float

    @property
    def decides(self) -> bool:
        return self.kind in {"overall", "gate"}


@dataclass(frozen=True, slots=True)
class Point:
    """One version in the plot of cost beside quality."""

    name: str
    x: float
    score: float
    low: float
    high: float


def forest(bars: Sequence[Bar], margin: float, alt: str) -> Drawing:
    """Differences with their intervals, in points; the margin shaded."""
    shown = bars[:ROWS_MAX]
    places, headings = _places(shown)

    def draw(width: Width) -> Figure:
        figure, axes = _rows_figure(width, places[-1] + 1, above_in=0.25)
        _forest_frame(axes, shown, margin)
        for y, heading in headings:
            _heading(axes, y, heading, width)
        for y, bar in zip(places, shown, strict=True):
            _forest_row(axes, y, bar, width)
        return figure

    return _both("forest", alt, draw)


def _places(bars: Sequence[Bar]) -> tuple[list[float], list[tuple[float, str]]]:
    """Where each row lies, with a heading before the scorers and before the slices."""
    places: list[float] = []
    headings: list[tuple[float, str]] = []
    y, before = 0.0, ""
    for bar in bars:
        section = _SECTIONS[bar.kind]
        if section and section != before:
            headings.append((y + 0.1, section))
            y += 0.85
        before = section
        places.append(y)
        y += 1
    return places, headings


def _heading(axes: Axes, y: float, text: str, width: Width) -> None:
    left = _NAMES_AT if width == "wide" else 0
    axes.text(left, y, text, transform=axes.get_yaxis_transform(), va="center", color=MUTED, fontsize=9.5)


def _rows_figure(width: Width, rows: float, *, above_in: float) -> tuple[Figure, Axes]:
    """A figure with a line per row: names left of the axes and figures right of them, or above each row on a phone."""
    row_in = 0.3 if width == "wide" else 0.46
    figure = _figure(width, rows * row_in + 0.5 + above_in)
    across, high = figure.get_size_inches()
    left, right = (2.75, 2.0) if width == "wide" else (0.1, 0.1)
    axes = figure.add_axes((left / across, 0.5 / high, 1 - (left + right) / across, 1 - (0.5 + above_in) / high))
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    return figure, axes


def _forest_frame(axes: Axes, bars: Sequence[Bar], margin: float) -> None:
    reach = _reach(bars, margin)
    axes.set_xlim(-reach, reach)
    axes.axvspan(-100 * margin, 0, color=MARGIN, alpha=0.22, linewidth=0)
    axes.axvline(0, color=INK, linewidth=1)
    axes.axvline(-100 * margin, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    axes.set_xlabel("candidate − baseline, points")
    axes.annotate(
        "worse", (0, 1), (2, 3), xycoords="axes fraction", textcoords="offset points", color=MUTED, fontsize=9.5
    )
    axes.annotate(
        "better", (1, 1), (-2, 3), xycoords="axes fraction", textcoords="offset points", color=MUTED, ha="right",
        fontsize=9.5,
    )  # fmt: skip


def _reach(bars: Sequence[Bar], margin: float) -> float:
    """Half the width of the axis, in points: all of the deciding rows; a slice's long interval ends in an arrow."""
    deciding = [bar for bar in bars if bar.decides]
    ends = [abs(end) for bar in deciding for end in (bar.low, bar.high)]
    middles = [abs(bar.difference) for bar in bars]
    others = [abs(end) for bar in bars for end in (bar.low, bar.high)]
    wanted = max(2.5 * max(ends, default=0.0), 2 * margin, *(1.2 * middle for middle in middles), 0.01)
    return 100 * min(wanted, 1.08 * max(*others, 1.5 * margin, 0.01))


def _forest_row(axes: Axes, row: float, bar: Bar, width: Width) -> None:
    reach = axes.get_xlim()[1]
    low, middle, high = 100 * bar.low, 100 * bar.difference, 100 * bar.high
    y = row if width == "wide" else row + 0.22
    axes.plot([max(low, -reach), min(high, reach)], [y, y], color=CANDIDATE, linewidth=2.4 if bar.decides else 1.5)
    for end, outside, marker in ((-reach, low < -reach, "<"), (reach, high > reach, ">")):
        if outside:
            axes.plot([end], [y], marker=marker, color=CANDIDATE, markersize=5, clip_on=False)
    axes.plot([middle], [y], marker=_MARKER[bar.kind], color=CANDIDATE, markersize=7 if bar.decides else 5)
    figures = f"{words.signed(bar.difference)} [{words.signed(bar.low)}, {words.signed(bar.high)}]"
    _row_texts(axes, row, bar, figures, width)


def _row_texts(axes: Axes, y: float, bar: Bar, figures: str, width: Width) -> None:
    weight = "bold" if bar.decides else "normal"
    across = axes.get_yaxis_transform()
    if width == "wide":
        axes.text(_NAMES_AT, y, words.line(bar.name, 27), transform=across, va="center", fontweight=weight)
        axes.text(-0.03, y, f"n = {bar.n:,}", transform=across, va="center", ha="right", color=MUTED)
        axes.text(1.03, y, figures, transform=across, va="center", fontweight=weight)
        return
    above = y - 0.2
    axes.text(0, above, words.line(bar.name, 22), transform=across, va="center", fontweight=weight, fontsize=10)
    told = f"{figures}  n {bar.n:,}"
    axes.text(1, above, told, transform=across, va="center", ha="right", fontsize=9.5, color=MUTED)


def scores(series: Sequence[tuple[str, Sequence[float]]], alt: str) -> Drawing:
    """How each version's scores are distributed, side by side, in share of its samples."""
    edges = score_edges([values for _, values in series])
    binary = len(edges) == 3

    def draw(width: Width) -> Figure:
        figure = _figure(width, 2.7)
        axes = figure.add_subplot()
        middles = (edges[:-1] + edges[1:]) / 2
        breadth = float(edges[1] - edges[0]) * 0.76 / len(series)
        for index, (name, values) in enumerate(series):
            heights = 100 * np.histogram(values, edges)[0] / max(1, len(values))
            shift = (index - (len(series) - 1) / 2) * breadth
            drawn = axes.bar(middles + shift, heights, breadth, color=_LOOKS[index].colour, label=name)
            axes.bar_label(drawn, [f"{height:.0f}" for height in heights], fontsize=9, color=INK, padding=1)
        if binary:
            axes.set_xticks([0, 1], ["wrong (0)", "right (1)"])
        else:
            axes.set_xlabel("score")
        axes.grid(visible=False, axis="x")
        axes.set_ylabel("% of the samples")
        axes.margins(y=0.15)
        if len(series) > 1:
            _legend(axes)
        return figure

    return _both("scores", alt, draw)


def score_edges(sides: Sequence[Sequence[float]]) -> np.ndarray:
    """The edges of the bars: two bars where every score is 0 or 1, else ten from 0 to 1."""
    binary = {value for side in sides for value in side} <= {0.0, 1.0}
    return np.array([-0.5, 0.5, 1.5]) if binary else np.linspace(0, 1, _BINS + 1)


def latencies(panels: Sequence[tuple[str, Sequence[tuple[str, Sequence[float]]]]], alt: str) -> Drawing:
    """The share of requests that had ended after so many seconds: a panel per time, a curve per version."""

    def draw(width: Width) -> Figure:
        shape = (1, len(panels)) if width == "wide" else (len(panels), 1)
        figure = _figure(width, 2.9 if width == "wide" else 2.6 * len(panels))
        for axes, (title, series) in zip(figure.subplots(*shape, squeeze=False).flat, panels, strict=True):
            _latency_panel(axes, title, series)
        return figure

    return _both("latency", alt, draw)


def _latency_panel(axes: Axes, title: str, series: Sequence[tuple[str, Sequence[float]]]) -> None:
    for (name, values), look in zip(series, _LOOKS, strict=False):
        if values:
            shares = np.linspace(0, 1, min(_CURVE_POINTS, max(2, len(values))))
            times = np.quantile(values, shares)
            axes.plot(times, 100 * shares, color=look.colour, linestyle=look.style, linewidth=2, label=name)
    positive = [value for _, values in series for value in values if value > 0]
    if positive and max(positive) > _LOGARITHMIC_FROM * min(positive):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda *_: "")
    else:
        axes.set_xlim(left=0)
    axes.set_ylim(0, 101)
    axes.set_xlabel(f"{title}, seconds")
    axes.set_ylabel("% of requests")
    if len(series) > 1:
        _legend(axes)


def quality(points: Sequence[Point], label: str, alt: str) -> Drawing:
    """Mean score with its interval over cost: up and to the left is what one wants."""

    def draw(width: Width) -> Figure:
        figure = _figure(width, 2.7)
        axes = figure.add_subplot()
        for point, look in zip(points, _LOOKS, strict=False):
            axes.plot([point.x] * 2, [100 * point.low, 100 * point.high], color=look.colour, linewidth=2)
            axes.plot(
                [point.x], [100 * point.score], marker=look.marker, color=look.colour, markersize=9, linestyle="none",
                label=point.name,
            )  # fmt: skip
        top = max(point.x for point in points)
        axes.set_xlim(0, 1.25 * top if top else 1)
        axes.set_xlabel(label)
        axes.set_ylabel("mean score of 100")
        axes.margins(y=0.1)
        _legend(axes)
        return figure

    return _both("quality", alt, draw)


def positions(bands: Sequence[tuple[int, int, float]], label: str, alt: str) -> Drawing:
    """A mean per band of positions: (first, one past the last, mean)."""

    def draw(width: Width) -> Figure:
        figure = _figure(width, 2.7)
        axes = figure.add_subplot()
        edges = [float(bands[0][0]), *(float(end) for _, end, _ in bands)]
        axes.stairs([mean for *_, mean in bands], edges, color=CANDIDATE, linewidth=2)
        axes.set_xlabel("position in the text, tokens")
        axes.set_ylabel(label)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        return figure

    return _both("positions", alt, draw)


def means(bars: Sequence[Bar], alt: str) -> Drawing:
    """The mean scores of one run with their intervals; `difference` holds the mean."""
    shown = bars[:ROWS_MAX]
    places, headings = _places(shown)

    def draw(width: Width) -> Figure:
        figure, axes = _rows_figure(width, places[-1] + 1, above_in=0.1)
        axes.set_xlim(0, 100)
        axes.set_xlabel("mean score of 100")
        for y, heading in headings:
            _heading(axes, y, heading, width)
        for y, bar in zip(places, shown, strict=True):
            low, mean, high = 100 * bar.low, 100 * bar.difference, 100 * bar.high
            at = y if width == "wide" else y + 0.22
            axes.plot([low, high], [at, at], color=BASELINE, linewidth=2.4 if bar.decides else 1.5, clip_on=False)
            marker = _MARKER[bar.kind]
            axes.plot([mean], [at], marker=marker, color=BASELINE, markersize=7 if bar.decides else 5, clip_on=False)
            _row_texts(axes, y, bar, f"{mean:.1f} [{low:.1f}, {high:.1f}]", width)
        return figure

    return _both("means", alt, draw)


def _legend(axes: Axes, columns: int = 2) -> None:
    """Above the plot, where it hides nothing."""
    axes.legend(ncols=columns, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)


def _figure(width: Width, height_in: float) -> Figure:
    from matplotlib.figure import Figure  # noqa: PLC0415 - heavy

    return Figure(figsize=(WIDE_IN if width == "wide" else NARROW_IN, height_in), layout=None)


def _both(name: str, alt: str, draw: Callable[[Width], Figure]) -> Drawing:
    """The plot in both widths. Plots without places of their own are laid out by matplotlib."""
    made = []
    widths: tuple[Width, ...] = ("wide", "narrow")
    for width in widths:
        own = f"{name}-{width}"
        with svg.settings(own):
            figure = draw(width)
            if name not in {"forest", "means"}:
                figure.set_layout_engine("tight", pad=0.4)
            made.append(svg.inline(figure, own, alt))
    return Drawing(*made)
