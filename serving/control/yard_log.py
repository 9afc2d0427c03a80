"""The control plane's own log, in the state directory.

Owns: `yard.log`, its form and its size. Never: what is said there, the logs of workers and engines.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

FILE_NAME = "yard.log"
LOG_BYTES_MAX = 4 * 1024 * 1024


@contextmanager
def logging_to(root: Path) -> Iterator[None]:
    """While it is entered, everything that the control plane logs is also in the file in `root`."""
    handler = RotatingFileHandler(root / FILE_NAME, maxBytes=LOG_BYTES_MAX, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    parent = logging.getLogger("modelyard")
    parent.setLevel(logging.INFO)
    parent.addHandler(handler)
    try:
        yield
    finally:
        parent.removeHandler(handler)
        handler.close()
