"""Figures and times as people read them.

Owns: rounding, units, plain words for states. Never: markup, clocks (`now` is an argument).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

NOTHING: Final = "–"
"""Shown where a figure is not known."""

STATES: Final[Mapping[str, tuple[str, str]]] = {
    "ready": ("good", "Ready"),
    "starting": ("wait", "Starting"),
    "draining": ("wait", "Finishing"),
    "backoff": ("bad", "Down, trying again"),
    "failed": ("bad", "Failed"),
    "stopped": ("off", "Stopped"),
    "registered": ("off", "Not started"),
    "retired": ("off", "Retired"),
    "degraded": ("wait", "Degraded"),
    "ok": ("good", "OK"),
    "serving": ("good", "Serving"),
}
"""A state of the control plane -> kind of badge and what it says."""

OUTCOMES: Final[Mapping[str, str]] = {
    "completed": "good",
    "failed": "bad",
    "truncated": "bad",
    "cancelled": "off",
    "rejected": "wait",
}


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits with separators: 12,345 · 1.23 · 0.00456."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:,.{digits}g}" if abs(value) >= 1e-4 else f"{value:.2g}"


def count(value: float | None, noun: str = "") -> str:
    """A whole number, with its noun in the right number where one is given."""
    if value is None:
        return NOTHING
    return f"{value:,.0f} {noun if value == 1 else noun + 's'}" if noun else f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """A duration: 850 µs · 12 ms · 1.25 s · 3 min 20 s · 4 h 5 min · 2 d 3 h."""
    if value is None:
        return NOTHING
    if value < 0.9995:
        small = value * 1000
        return f"{value * 1e6:.0f} µs" if 0 < small < 1 else f"{small:.3g} ms" if small < 99.5 else f"{small:.0f} ms"
    if value < 60:
        return f"{value:.3g} s"
    whole = round(value)
    if whole < 3600:
        return _two(whole, 60, "min", "s")
    if whole < 86400:
        return _two(whole // 60, 60, "h", "min")
    return _two(whole // 3600, 24, "d", "h")


def _two(value: int, base: int, large: str, small: str) -> str:
    high, low = divmod(value, base)
    return f"{high} {large} {low} {small}" if low else f"{high} {large}"


def size(value: float | None) -> str:
    """Bytes in powers of 1000."""
    if value is None:
        return NOTHING
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.0f} {unit}" if unit in ("B", "kB") else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def money(value: float | None, currency: str) -> str:
    """An amount, with as many places as it takes to see something."""
    if value is None:
        return NOTHING
    if value == 0:
        return f"0 {currency}"
    places = 2 if abs(value) >= 1 else 4 if abs(value) >= 0.001 else 7
    return f"{value:,.{places}f} {currency}"


def share(value: float | None) -> str:
    """A fraction as per cent."""
    if value is None:
        return NOTHING
    percent = value * 100
    return f"{percent:.0f}%" if percent in (0, 100) or percent >= 10 else f"{percent:.2g}%"


def points(basis_points: int) -> str:
    """Basis points as per cent, exactly: 9000 -> 90%, 25 -> 0.25%."""
    return f"{basis_points / 100:g}%"


def when(at: float | None) -> str:
    """A moment in UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S") if at else NOTHING


def iso(at: float) -> str:
    """The same for a `datetime` attribute."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def ago(at: float | None, now: float) -> str:
    """How long it is, roughly: just now · 40 s ago · 3 h ago."""
    if not at:
        return NOTHING
    gone = max(0.0, now - at)
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h"), (float("inf"), 86400, "d")):
        if gone < limit:
            return "just now" if gone < 3 else f"{gone / unit:.0f} {name} ago"
    raise AssertionError("every span is below infinity")


def state(name: str) -> dict[str, str]:
    """Kind and words of a state's badge."""
    kind, words = STATES.get(name, ("off", name.capitalize()))
    return {"kind": kind, "words": words}


def outcome(name: str) -> str:
    """The kind of badge of a request's outcome."""
    return OUTCOMES.get(name, "off")


FILTERS: Final[Mapping[str, Any]] = {
    "number": number,
    "count": count,
    "seconds": seconds,
    "size": size,
    "money": money,
    "share": share,
    "points": points,
    "when": when,
    "iso": iso,
    "ago": ago,
    "state": state,
    "outcome": outcome,
}
"""What templates call them."""
