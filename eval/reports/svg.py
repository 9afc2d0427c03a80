"""A matplotlib figure as an SVG that lives inside a page.

Owns: turning colours into the page's classes, so that light and dark need one drawing; ids that are unique in the page;
no styles, so that a strict content policy holds. Never: what is drawn (plots.py).

The same figure gives the same bytes: ids are hashed with the plot's name, and no date or program is noted.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK: Final = "#010101"
MUTED: Final = "#020202"
GRID: Final = "#030303"
BASELINE: Final = "#040404"
CANDIDATE: Final = "#050505"
MARGIN: Final = "#060606"
PAPER: Final = "#070707"
NAMES: Final = MappingProxyType(
    {INK: "ink", MUTED: "muted", GRID: "grid", BASELINE: "base", CANDIDATE: "cand", MARGIN: "margin", PAPER: "paper"}
)
"""The colour that a plot draws with -> the name of the page's colour that it stands for: classes f-NAME and s-NAME."""

_SVG: Final = "http://www.w3.org/2000/svg"
_XLINK: Final = "http://www.w3.org/1999/xlink"
_FONT: Final = {"font-family", "font-style"}
_USED: Final = re.compile(r"url\(#([^)]+)\)")


@dataclass(frozen=True, slots=True)
class Drawing:
    """One plot in a width for wide screens and one for phones."""

    wide: Markup
    narrow: Markup


@contextmanager
def settings(name: str) -> Iterator[None]:
    """matplotlib's settings for a plot of this name, and as they were afterwards."""
    import matplotlib  # noqa: PLC0415 - heavy

    chosen: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "font.size": 11,
        "text.color": INK,
        "axes.edgecolor": GRID,
        "axes.labelcolor": MUTED,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "xtick.color": GRID,
        "ytick.color": GRID,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "figure.facecolor": "none",
        "legend.frameon": False,
    }
    with matplotlib.rc_context(chosen), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a character that its own font lacks: the reader's has it
        yield


def inline(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an `<svg>` element for a page, described by `alt`. Call it within `settings(name)`."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415 - heavy

    text = io.StringIO()
    FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    root = ElementTree.fromstring(text.getvalue())  # noqa: S314 - matplotlib's own output
    _strip(root)
    kept = {found for item in root.iter() for found in _references(item)}
    for item in root.iter():
        _without_style(item)
        if (own := item.get("id")) is not None:
            if own in kept:
                item.set("id", f"{name}-{own}")
            else:
                del item.attrib["id"]
        for key, value in item.items():
            if key == f"{{{_XLINK}}}href":
                del item.attrib[key]
                item.set("href", f"#{name}-{value[1:]}")
            elif "url(#" in value:
                item.set(key, _USED.sub(rf"url(#{name}-\1)", value))
    root.attrib.pop("height", None)
    root.attrib.pop("width", None)
    root.set("role", "img")
    root.set("aria-label", alt)
    ElementTree.register_namespace("", _SVG)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 - serialised, so escaped


def _strip(root: ElementTree.Element) -> None:
    """Remove metadata, the style sheet that would hold for the whole page, and the white space between elements."""
    for parent in root.iter():
        for child in list(parent):
            if child.tag in {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"}:
                parent.remove(child)
        parent.tail = None
        if parent.tag != f"{{{_SVG}}}text":
            parent.text = None
        if path := parent.get("d"):
            parent.set("d", re.sub(r"(\.\d\d)\d+", r"\1", " ".join(path.split())))


def _references(item: ElementTree.Element) -> Iterator[str]:
    for key, value in item.items():
        if key == f"{{{_XLINK}}}href":
            yield value[1:]
        else:
            yield from _USED.findall(value)


def _without_style(item: ElementTree.Element) -> None:
    """Each declaration of `style` as an attribute, or as the class of a colour."""
    classes = []
    for declaration in (item.attrib.pop("style", "")).split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if not key or key in _FONT:
            continue
        if key in {"fill", "stroke"} and value in NAMES:
            classes.append(f"{key[0]}-{NAMES[value]}")
        else:
            item.set(key, value.removesuffix("px"))
    if classes:
        item.set("class", " ".join(classes))
