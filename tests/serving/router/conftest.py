"""Fixtures of the router's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from engines.fixtures import fake_engine  # noqa: F401 - a fixture
from router_harness import RouterProcess, running_router


@pytest.fixture
def router(tmp_path: Path) -> Iterator[RouterProcess]:
    """A worker without a table yet."""
    with running_router(tmp_path) as process:
        yield process
