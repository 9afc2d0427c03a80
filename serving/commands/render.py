"""How the commands show values: tables, spans of time, money, shares.

Owns: formatting. Never: fetching. Rich is imported when something is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from registry import terminal

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from serving.commands.tables import FittingTable

WIDE = 200
"""Columns where standard output is a file or a pipe: nothing is cut or wrapped there."""

STATE_STYLES = {
    "ready": "green",
    "starting": "cyan",
    "draining": "yellow",
    "backoff": "yellow",
    "failed": "bold red",
    "stopped": "dim",
    "registered": "dim",
    "retired": "dim",
}


def out() -> Console:
    """Standard output, wide where nobody looks at it directly."""
    console = terminal.console()
    if not console.is_terminal:
        console.width = max(console.width, WIDE)
    return console


def show(*parts: RenderableType) -> None:
    """Print tables and lines one below the other."""
    console = out()
    for part in apart(parts):
        console.print(part)


def apart(parts: Sequence[RenderableType]) -> list[RenderableType]:
    """The parts with an empty line between two of them."""
    return [item for index, part in enumerate(parts) for item in ((part,) if index == 0 else ("", part))]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> FittingTable:
    """A plain table. A column whose name begins with `>` is aligned to the right."""
    from serving.commands.tables import FittingTable  # noqa: PLC0415 - see above

    return FittingTable(columns, rows, title=title)


def flowing(*parts: str) -> RenderableType:
    """Markup in one line, which is broken only at the dots between the parts where it is too long."""
    from serving.commands.tables import Flow  # noqa: PLC0415 - see above

    return Flow(parts)


def escaped(text: str) -> str:
    """Text that is not markup, whatever it holds."""
    from rich.markup import escape  # noqa: PLC0415 - see above

    return escape(text)


def state(name: str) -> str:
    """A state in its colour."""
    style = STATE_STYLES.get(name)
    return f"[{style}]{name}[/]" if style else escaped(name)


def percent(basis_points: int) -> str:
    """Basis points as per cent: 9000 is `90%`."""
    return f"{basis_points / 100:g}%"


def weights(route: dict[str, int]) -> str:
    """`v1 90%  v2 10%`"""
    return "  ".join(f"{label} {percent(weight)}" for label, weight in route.items())


def seconds(value: float | None) -> str:
    """A span of time as a person would say it."""
    if value is None:
        return "-"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h" if value < 172_800 else f"{value / 86_400:.0f} d"


def money(value: float | None, currency: str) -> str:
    """An amount with four significant digits, never fewer than cents; the currency may be "" where a heading has it."""
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 1:
        text = f"{value:,.2f}"
    else:
        text = f"{value:.4g}" if abs(value) >= 1e-4 else f"{value:.2e}"
    return f"{text} {currency}".rstrip()


def number(value: float | None, digits: int = 0) -> str:
    """A count or a rate."""
    return "-" if value is None else f"{value:,.{digits}f}"


def size(value: float | None) -> str:
    """Bytes in decimal units."""
    if value is None:
        return "-"
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def moment(unix_s: float) -> str:
    """Local date and time."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))
    except (OverflowError, OSError, ValueError):
        return f"{unix_s:.0f} s"


def brief(value: Any) -> str:
    """A mapping of an audit entry in one line."""
    if not isinstance(value, dict):
        return "-" if value is None else str(value)
    return " ".join(f"{key}={brief(item) if isinstance(item, dict) else item}" for key, item in value.items())
