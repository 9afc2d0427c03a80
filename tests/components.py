"""What tests may lack, and where the project lies. Import from here: several modules are called conftest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"


def missing(component: str, remedy: str) -> None:
    """Skip for a component that is not there; fail instead where MODELYARD_REQUIRE names it, or all of them."""
    required = os.environ.get("MODELYARD_REQUIRE", "").split(",")
    message = f"{component} is not there: {remedy}"
    if "all" in required or component in required:
        pytest.fail(message)
    pytest.skip(message)
