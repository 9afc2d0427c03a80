"""The router's hot path compiled to machine code, where somebody has built it: `make native`.

Owns: where compiled modules lie and when they may be used. Never: building (requirements/native.py does), being needed:
without them the same source runs as Python.

They lie in `.native/DIGEST`, and DIGEST is that of the sources that went into them: a change of any of those leaves
them aside, so that what runs is always what is written. MODELYARD_NATIVE=0 leaves them aside too.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
COMPILED: Final = (
    "account",
    "admission",
    "answer",
    "assign",
    "breaker",
    "continuation",
    "counters",
    "deadlines",
    "degraded",
    "entrance",
    "exchange",
    "forward",
    "hold",
    "http1",
    "keys",
    "plan",
    "quota",
    "resuming",
    "retry",
    "router",
    "snapshot",
    "split",
    "sse",
    "upstream",
)
"""Modules of `serving.router` that run for every request or event, but for those whose classes msgspec decodes into: it
reads their annotations, which mypyc does not keep."""
SWITCH: Final = "MODELYARD_NATIVE"
_READ: Final = ("registry/models.py", "registry/manifest.py", "registry/usage.py", "serving/errors.py")
"""What they take constants from, beside the modules of their own package."""


def digest() -> str:
    """Changes with every source that goes into the compiled modules, and with the interpreter."""
    found = hashlib.sha256(repr((sys.version, COMPILED)).encode())
    for path in [*sorted((ROOT / "serving" / "router").glob("*.py")), *(ROOT / name for name in _READ)]:
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:32]


def folder() -> Path | None:
    """Where the compiled modules of these very sources lie; None where they run as Python."""
    root = ROOT / ".native"
    if os.environ.get(SWITCH) == "0" or not root.is_dir():
        return None
    found = root / digest() / "serving" / "router"
    return found if found.is_dir() else None
