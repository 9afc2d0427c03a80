"""A yard with a past (`scene`), in front of a browser: for tests of the data pages, and for the pictures in docs.

Owns: starting it. Never: what its past is (scene).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import scene
from engines.fixtures import start_fake_engine
from stack import Stack, stack

from registry.state import StateDir


@contextlib.contextmanager
def yard_with_a_past(folder: Path, *, requests: int = 400, model: Path | None = None) -> Iterator[Stack]:
    """A real `modelyard up` over fake engines, on a state directory that was filled before;
    with a `model` file, a real llama.cpp engine too."""
    with contextlib.ExitStack() as until:
        engines = [
            start_fake_engine("--events", "12", "--gap-s", "0.02", "--first-token-delay-s", "0.15") for _ in range(2)
        ]
        for engine in engines:
            assert engine.process.stdout is not None
            until.callback(engine.process.stdout.close)
            until.callback(engine.kill)
        urls = [engine.url for engine in engines]
        made = until.enter_context(stack(folder, scene.config(*urls, model)))
        scene.fill(StateDir(made.state), time.time(), *urls, requests=requests)
        yield made.up(timeout_s=120)
