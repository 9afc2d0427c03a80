"""Fixtures of the engines' tests; nothing that they start is left running."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_harness import version
from engines.fixtures import (  # noqa: F401 - fixtures
    FAKE_ENGINE,
    fake_engine,
    hosted_python,
    vllm_checkpoints,
    vllm_python,
)

from serving.engines import process
from serving.engines.base import EngineVersion


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of all replicas; fails a test that leaves a process of an engine behind."""
    folder = tmp_path / "engines"
    yield folder
    left = process.marked(folder)
    for path in left:
        asyncio.run(process.sweep(path, process.recorded(path), 0.0))
    assert not left, f"engines were left running: {left}"


@pytest.fixture
def faulty(tmp_path: Path) -> Callable[..., EngineVersion]:
    """A version whose `llama-server` is the fake engine with these flags."""
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")

    def make(label: str, *flags: str) -> EngineVersion:
        program = tmp_path / f"llama-server-{label}"
        program.write_text(
            textwrap.dedent(
                f"""\
                #!{sys.executable}
                import os, sys
                args = sys.argv
                port, alias = args[args.index("--port") + 1], args[args.index("--alias") + 1]
                fake = {[str(FAKE_ENGINE), *flags]!r}
                os.execv(sys.executable, [sys.executable, *fake, "--port", port, "--name", alias])
                """
            )
        )
        program.chmod(0o755)
        return version(label, model, engine_args={"binary": str(program)})

    return make
