"""What a change changed: two values of the audit as lines of before and after.

Owns: finding and wording the differences. Never: markup. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from monitoring.console.words import NOTHING, points

WEIGHTS: Final = ("weights", "route")
TEXT_MAX: Final = 160
DIGEST_CHARS: Final = 19
"""Enough of a digest to tell it from others."""
LINES_MAX: Final = 24


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it was."""

    name: str
    before: str
    """NOTHING where there was none."""
    after: str


def differences(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[Difference]:
    """What differs, by name; of something that is new or gone everything that it has. At most LINES_MAX."""
    old, new = _flat(before or {}), _flat(after or {})
    names = [*old, *(name for name in new if name not in old)]
    found = [
        Difference(name, _text(name, old.get(name)), _text(name, new.get(name)))
        for name in names
        if old.get(name) != new.get(name)
    ]
    return found[:LINES_MAX]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, one in value.items():
        path = f"{prefix}{name}"
        if isinstance(one, Mapping) and one:
            found |= _flat(one, f"{path} ")
        elif one not in (None, "", [], {}):
            found[path] = one
    return found


def _text(name: str, value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, list):
        value = ", ".join(str(one) for one in value)
    elif isinstance(value, int) and not isinstance(value, bool) and name.split(" ", maxsplit=1)[0] in WEIGHTS:
        value = points(value)
    text = str(value)
    if text.startswith("sha256:"):
        return f"{text[:DIGEST_CHARS]}…"
    return text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}…"
