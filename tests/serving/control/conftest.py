"""Fixtures of the control plane's tests: fake engines, and this folder's helper programs as modules."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE, HERE.parents[1]):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from engines.fixtures import fake_engine  # noqa: E402, F401
