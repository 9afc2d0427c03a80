"""Bars on a logarithmic scale as one SVG file that reads well on a light and on a dark page: no library, no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, NAMES, ROW, HEAD, GAP, RIGHT = 960, 390, 26, 66, 34, 110
STYLE = """
  .page { fill: #ffffff; stroke: #d0d7de } .ink { fill: #1f2328 } .faint { fill: #59636e }
  .grid { stroke: #d0d7de } .bar { fill: #8c959f } .own { fill: #0969da }
  text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif } .title { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #3d444d } .ink { fill: #f0f6fc } .faint { fill: #9198a1 }
    .grid { stroke: #3d444d } .bar { fill: #656c76 } .own { fill: #4493f8 }
  }
"""


@dataclass(frozen=True)
class Panel:
    """One figure of every router. A value of None is said in words: there is nothing to draw."""

    title: str
    unit: str
    values: Sequence[tuple[str, float | None]]


def bars(panels: Sequence[Panel], *, own: str, note: str) -> str:
    """The chart. Bars whose name begins with `own` stand out; lengths are logarithms, so every value is written."""
    height = GAP
    body: list[str] = []
    for panel in panels:
        body += _panel(panel, height, own)
        height += HEAD + ROW * len(panel.values) + GAP
    title = "; ".join(panel.title for panel in panels)
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height + GAP}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="page" x=".5" y=".5" width="{WIDTH - 1}" height="{height + GAP - 1}" rx="6"/>',
            *body,
            f'<text class="faint" x="20" y="{height + 8}">{escape(note)}</text>',
            "</svg>\n",
        )
    )


def scale(values: Sequence[float]) -> tuple[float, float]:
    """Powers of ten that hold all the values. Raises ValueError where one is not above 0."""
    if not values or min(values) <= 0:
        raise ValueError("a logarithmic scale holds values above 0 only")
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def shown(value: float) -> str:
    """At least three digits, no false ones."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _panel(panel: Panel, top: float, own: str) -> list[str]:
    low, high = scale([value for _, value in panel.values if value is not None])
    decades = math.log10(high / low)

    def x(value: float) -> float:
        return NAMES + (WIDTH - NAMES - RIGHT) * math.log10(value / low) / decades

    bottom = top + HEAD + ROW * len(panel.values)
    lines = [f'<text class="ink title" x="20" y="{top + 8}">{escape(panel.title)}</text>']
    for step in range(round(decades) + 1):
        at, value = x(low * 10**step), low * 10**step
        lines.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top + HEAD - 24}" y2="{bottom}"/>')
        lines.append(f'<text class="faint" x="{at:.1f}" y="{top + HEAD - 30}" text-anchor="middle">{value:g}</text>')
    for row, (name, value) in enumerate(panel.values):
        y = top + HEAD - 14 + ROW * row
        kind = "own" if name.startswith(own) else "bar"
        lines.append(f'<text class="ink" x="{NAMES - 10}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        if value is None:
            lines.append(f'<text class="faint" x="{NAMES + 6}" y="{y + 13}">none was answered</text>')
            continue
        lines.append(f'<rect class="{kind}" x="{NAMES}" y="{y}" width="{x(value) - NAMES:.1f}" height="17" rx="2"/>')
        label = f"{shown(value)} {panel.unit}"
        lines.append(f'<text class="ink" x="{x(value) + 6:.1f}" y="{y + 13}">{escape(label)}</text>')
    return lines
