"""Fixtures of the evaluation's tests: fake engines, a small suite, the command line as a process, a real engine."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from engines.fixtures import fake_engine  # noqa: F401 - a fixture
from engines.models import llama_python, q4_0_path, transformers_python  # noqa: F401 - fixtures
from eval_support import Cli, write_suite

from eval import loaders
from eval.suite import Suite

SERVE = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_parallel, params.n_ctx = sys.argv[1], int(sys.argv[2]), 4, 8192
params.cpuparams.n_threads = 2
server = xllamacpp.Server(params)
time.sleep(3600)
"""


@pytest.fixture
def small_suite(tmp_path: Path) -> Suite:
    """Twelve cases, half of which a fake engine gets right."""
    return loaders.load(str(write_suite(tmp_path / "small")), tmp_path / "cache")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path / "state")


@pytest.fixture(scope="session")
def llama_url(smollm2_path: Path) -> Iterator[str]:
    """A real llama.cpp server on SmolLM2."""
    pytest.importorskip("xllamacpp")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [sys.executable, "-c", SERVE, str(smollm2_path), str(port)]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait(lambda: httpx.get(f"{url}/health", trust_env=False).status_code == 200)
            yield url
        finally:
            process.kill()


def _wait(ready: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            if ready():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the llama.cpp server did not start within two minutes")
