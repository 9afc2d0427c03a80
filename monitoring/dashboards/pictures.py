"""A dashboard drawn as it is laid out: each panel in its place, with the figures that Prometheus gave.

Owns: drawing. Never: asking, which panels there are. These are drawings, not screenshots of Grafana.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from monitoring.dashboards.figures import Shown, Window, rows_of, value

WIDTH_PX: Final = 1280
CELL_PX: Final = 38
"""The height of one line of Grafana's grid, its gap included."""
DPI: Final = 100
INK, FAINT, BOX, PAGE = "#1f2933", "#7b8794", "#ffffff", "#eef1f4"
LINES: Final = ("#2f6fdb", "#e8770c", "#1f9d55", "#8f3fc5", "#c92a4e", "#0c8599", "#a07d00", "#5c5f66")
COLOURS: Final = {"green": "#1a7f37", "orange": "#b35900", "red": "#c92a2a", "dark-red": "#8a1010", "text": INK}
ROWS: Final = 8


def draw(dashboard: Mapping[str, Any], shown: Sequence[Shown], window: Window, path: Path) -> None:
    """Writes the picture of the dashboard's open rows to `path` (PNG with a palette, 1280 pixels wide)."""
    found = {one.panel["id"]: one for one in shown}
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    figure = Figure(figsize=(WIDTH_PX / DPI, (height + 1) * CELL_PX / DPI), dpi=DPI, facecolor=PAGE)
    canvas: Any = FigureCanvasAgg(figure)
    figure.text(0.008, 1 - 0.62 / (height + 1), dashboard["title"], size=14, weight="bold", color=INK, va="center")
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        y = 1 - (at["y"] + 1 + at["h"]) / (height + 1)
        box = (at["x"] / 24 + 0.003, y + 0.12 / (height + 1), at["w"] / 24 - 0.006, (at["h"] - 0.2) / (height + 1))
        if panel["type"] == "row":
            mark = "▸" if panel.get("collapsed") else "▾"
            figure.text(0.008, box[1] + box[3] / 2, f"{mark} {panel['title']}", size=11, color=INK, va="center")
        else:
            _panel(figure, box, found[panel["id"]], window)
    canvas.draw()
    _save(canvas, path)


def _save(canvas: Any, path: Path) -> None:
    image = Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(64, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)


def _panel(figure: Figure, box: tuple[float, float, float, float], shown: Shown, window: Window) -> None:
    x, y, width, height = box
    figure.patches.append(
        FancyBboxPatch((x, y), width, height, boxstyle="square,pad=0", facecolor=BOX, edgecolor="#d5dbe1",
                       transform=figure.transFigure, figure=figure, zorder=-1)
    )  # fmt: skip
    line = 18 / (figure.get_figheight() * DPI)
    figure.text(
        x + 0.006, y + height - line * 0.75, shown.panel["title"], size=8.5, weight="bold", color=INK, va="center"
    )
    inner = (x + 0.006, y + line * 0.35, width - 0.012, height - line * 1.75)
    if not shown.series:
        words = shown.panel["fieldConfig"]["defaults"]["noValue"] + (f" (needs {shown.needs})" if shown.needs else "")
        wide = max(16, int(width * 150))
        figure.text(
            x + width / 2, y + height / 2, textwrap.fill(words, wide), size=8, color=FAINT, ha="center", va="center"
        )
        return
    match shown.panel["type"]:
        case "stat":
            _stat(figure, inner, shown)
        case "table":
            _table(figure, inner, shown, line)
        case kind:
            legend = line * 2.4
            axes = figure.add_axes((x + 0.04, y + legend + line, width - 0.05, height - line * 2.4 - legend))
            if kind == "state-timeline":
                _states(axes, shown, window)
            else:
                _lines(axes, shown, window)
                _legend(figure, inner, shown, line)


def _stat(figure: Figure, inner: tuple[float, float, float, float], shown: Shown) -> None:
    x, y, width, height = inner
    defaults = shown.panel["fieldConfig"]["defaults"]
    mapped = _mapped(defaults)
    count = min(len(shown.series), 4)
    for index, series in enumerate(shown.series[:count]):
        text, _ = mapped.get(f"{series.last:g}", ("", ""))
        text = text or value(series.last, series.unit, defaults.get("decimals"))
        colour = _colour(series.last, defaults["thresholds"]["steps"])
        middle = y + height * (1 - (index + 0.5) / count)
        if count > 1:
            figure.text(x, middle, series.name, size=8, color=FAINT, va="center")
            figure.text(x + width, middle, text, size=11, weight="bold", color=colour, ha="right", va="center")
        else:
            size = min(24.0, 560 * width / max(4, len(text)) * 0.3 + 8)
            figure.text(x + width / 2, middle, text, size=size, weight="bold", color=colour, ha="center", va="center")


def _table(figure: Figure, inner: tuple[float, float, float, float], shown: Shown, line: float) -> None:
    x, y, width, height = inner
    names = [target["legendFormat"] for target in shown.panel["targets"]]
    first = max(0.22, 1 - 0.13 * len(names))
    step = (1 - first) / len(names)
    tops = [y + height - line * (0.6 + index) for index in range(ROWS + 1)]
    for index, name in enumerate(names):
        figure.text(
            x + width * (first + step * (index + 1)), tops[0], name, size=7.5, color=FAINT, ha="right", va="center"
        )
    room = max(1, min(ROWS, int(height / line) - 1))
    for top, (subject, cells) in zip(tops[1:], rows_of(shown)[:room], strict=False):
        figure.text(
            x, top, textwrap.shorten(subject, int(width * first * 190), placeholder="…"), size=8, color=INK, va="center"
        )
        for cell in cells:
            limits = _limits(shown.panel, names[cell.column])
            figure.text(x + width * (first + step * (cell.column + 1)), top, value(cell.last, cell.unit), size=8,
                        color=_colour(cell.last, limits), ha="right", va="center")  # fmt: skip


def _lines(axes: Axes, shown: Shown, window: Window) -> None:
    defaults = shown.panel["fieldConfig"]["defaults"]
    look = defaults.get("custom", {})
    stacked = look.get("stacking", {}).get("mode") == "normal"
    steps = look.get("lineInterpolation") == "stepAfter"
    base: dict[float, float] = {}
    for index, series in enumerate(shown.series[: len(LINES) * 2]):
        times = [at - window.stop for at, _ in series.points]
        bottom = [base.get(at, 0.0) if stacked else 0.0 for at, _ in series.points]
        tops = [low + number for low, (_, number) in zip(bottom, series.points, strict=True)]
        colour = LINES[index % len(LINES)]
        axes.plot(times, tops, color=colour, lw=1.2, drawstyle="steps-post" if steps else "default")
        if stacked:
            axes.fill_between(times, bottom, tops, color=colour, alpha=0.25, lw=0, step="post" if steps else None)
            base |= {at: top for (at, _), top in zip(series.points, tops, strict=True)}
    if look.get("scaleDistribution", {}).get("type") == "log":
        axes.set_yscale("log")
    elif "min" in defaults:
        axes.set_ylim(bottom=defaults["min"])
    if "max" in defaults:
        axes.set_ylim(top=defaults["max"] * 1.02)
    low, high = axes.get_ylim()
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is not None and low <= step["value"] <= high:
            axes.axhline(step["value"], color=COLOURS.get(step["color"], FAINT), lw=0.8, ls="--")
    unit = shown.series[0].unit
    axes.yaxis.set_major_formatter(lambda number, _: value(number, unit))
    _time(axes, window)
    axes.grid(visible=True, color="#e6eaee", lw=0.6)
    if axes.get_yscale() == "linear":
        axes.locator_params(axis="y", nbins=4)


def _states(axes: Axes, shown: Shown, window: Window) -> None:
    mapped = _mapped(shown.panel["fieldConfig"]["defaults"])
    series = shown.series[:ROWS]
    for row, one in enumerate(series):
        for at, number in one.points:
            _, colour = mapped.get(f"{number:g}", ("", "text"))
            axes.broken_barh([(at - window.stop, window.step_s)], (row - 0.38, 0.76), color=COLOURS.get(colour, FAINT))
    axes.set_yticks([])
    for row, one in enumerate(series):
        label = axes.text(window.start - window.stop, row, f" {one.name} ", size=7.5, color="white", va="center")
        label.set_bbox({"facecolor": INK, "alpha": 0.65, "pad": 1.5, "lw": 0})
    axes.set_ylim(len(series) - 0.5, -0.5)
    _time(axes, window)


def _time(axes: Axes, window: Window) -> None:
    length = window.stop - window.start
    axes.set_xlim(-length, 0)
    axes.set_xticks([-length * part for part in (1, 0.75, 0.5, 0.25, 0)])
    axes.xaxis.set_major_formatter(lambda number, _: f"{number / 60:.0f} min" if number else "now")
    axes.tick_params(labelsize=7, colors=FAINT, length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _legend(figure: Figure, inner: tuple[float, float, float, float], shown: Shown, line: float) -> None:
    x, y, width, _ = inner
    room = int(width * WIDTH_PX / 6.2)
    used = row = 0
    for index, series in enumerate(shown.series[: len(LINES)]):
        text = f"— {series.name}"
        if used and used + len(text) > room:
            used, row = 0, row + 1
        if row > 1:
            return
        figure.text(
            x + used * 5.4 / WIDTH_PX, y + line * (1.1 - row * 0.85), text, size=7, color=LINES[index], va="center"
        )
        used += len(text) + 3


def _mapped(defaults: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    return {
        key: (each["text"], each["color"])
        for mapping in defaults.get("mappings", ())
        for key, each in mapping["options"].items()
    }


def _limits(panel: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"]["options"] == column:
            for each in override["properties"]:
                if each["id"] == "thresholds":
                    return list(each["value"]["steps"])
    return []


def _colour(number: float, steps: Sequence[Mapping[str, Any]]) -> str:
    colour = "text"
    for step in steps:
        if step["value"] is None or number >= step["value"]:
            colour = step["color"]
    return COLOURS.get(colour, INK)
