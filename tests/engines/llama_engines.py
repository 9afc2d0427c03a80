"""Real llama.cpp engines for tests of the router: processes that are ready when a test gets them.

Owns: starting them and ending each. Never: the supervisor's work (`tests/serving/engines` tests that).
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def llama_engines(model: Path, count: int, **engine_args: object) -> Iterator[list[int]]:
    """The ports of `count` engines of a GGUF file, each with empty caches; killed at the end."""
    started: list[tuple[int, subprocess.Popen[bytes]]] = []
    try:
        for _ in range(count):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            command = [sys.executable, "-m", "serving.engines.llama_cpp_child", "--model", str(model), "--alias", "m"]
            command += ["--port", str(port), "--options", json.dumps({"engine_args": engine_args})]
            started.append(
                (port, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            )
        for port, process in started:
            _wait(port, process)
        yield [port for port, _ in started]
    finally:
        for _, process in started:
            process.kill()
            process.wait()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            assert process.poll() is None, "the engine ended"
        assert time.monotonic() < deadline, "the engine is not ready"
        time.sleep(0.05)
