"""What one check of `modelyard doctor` found.

Owns: its shape. Never: looking.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Result = Literal["ok", "note", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """`remedy` is what to do about it, "" where nothing is to do."""

    name: str
    result: Result
    detail: str
    remedy: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
