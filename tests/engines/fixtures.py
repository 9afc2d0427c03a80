"""Fixtures that start engines for tests: import them into a conftest.

    from engines.fixtures import fake_engine, vllm_checkpoints, vllm_python  # noqa: F401

Owns: starting fake engines and ending each with its whole process group; vLLM's environment and its checkpoints. Never:
pretending; every engine is a process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines import vllm_cpu

from serving.engines.hosted import found_interpreter

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")


@dataclass
class FakeEngine:
    """A running fake engine: where it listens, and what it says of itself."""

    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stats(self) -> dict[str, Any]:
        """Requests seen and cancelled, with times and the usage reported (`/fake/stats`)."""
        answer: dict[str, Any] = httpx.get(f"{self.url}/fake/stats", trust_env=False, timeout=30).json()
        return answer

    def last(self) -> dict[str, Any]:
        """How many requests it has seen, and its last two: cheap where there were many (`/fake/last`)."""
        answer: dict[str, Any] = httpx.get(f"{self.url}/fake/last", trust_env=False, timeout=30).json()
        return answer

    def behave(self, **behaviour: object) -> None:
        """Change its behaviour from the next request on; the names are those of the flags, with underscores."""
        httpx.post(f"{self.url}/fake/behave", json=behaviour, trust_env=False, timeout=30).raise_for_status()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the process and whatever it started; the port stays known."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        self.process.wait(30)


def start_fake_engine(*flags: str, port: int = 0) -> FakeEngine:
    """A fake engine with these flags, once it listens. The caller kills it."""
    argv = [sys.executable, str(FAKE_ENGINE), "--port", str(port), *flags]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("listening on "), f"the fake engine did not start: {line!r}"
    return FakeEngine(process, int(line.rpartition(":")[2]))


@pytest.fixture
def fake_engine() -> Iterator[Callable[..., FakeEngine]]:
    """Starts fake engines: `fake_engine("--events", "5", port=0)`; all of them end with the test."""
    started: list[FakeEngine] = []

    def start(*flags: str, port: int = 0) -> FakeEngine:
        engine = start_fake_engine(*flags, port=port)
        started.append(engine)
        return engine

    yield start
    for engine in started:
        engine.kill()
        assert engine.process.stdout is not None
        engine.process.stdout.close()


@pytest.fixture(scope="session")
def vllm_python(request: pytest.FixtureRequest) -> str:
    """The interpreter of an environment that has vLLM's CPU build."""
    if not vllm_cpu.is_ready():
        # By its path: several folders have a module called conftest.
        common: Any = request.config.pluginmanager.get_plugin(str(vllm_cpu.ROOT / "tests" / "conftest.py"))
        common.missing("vllm", "run `python tests/engines/vllm_cpu.py`, which takes some minutes")
    return str(vllm_cpu.PYTHON)


@pytest.fixture(scope="session")
def hosted_python(request: pytest.FixtureRequest) -> str:
    """The interpreter of an environment that has LiteLLM: our own, or that of `.venv-hosted`."""
    found = found_interpreter()
    if found is None:
        common: Any = request.config.pluginmanager.get_plugin(str(vllm_cpu.ROOT / "tests" / "conftest.py"))
        common.missing("litellm", "run `make hosted`")
    assert found is not None
    return found


@pytest.fixture(scope="session")
def vllm_checkpoints(vllm_python: str, smollm2_path: Path) -> tuple[Path, Path]:
    """Two versions of SmolLM2 as safetensors checkpoints: bfloat16, and the same rounded to 4 bits and back."""
    folder = vllm_cpu.ROOT / ".cache" / "checkpoints"
    versions = (folder / "smollm2" / "v1", folder / "smollm2" / "v2")
    if not (folder / "smollm2").is_dir():
        partial = folder / f"partial-{os.getpid()}"
        partial.mkdir(parents=True)
        script = Path(__file__).with_name("make_checkpoint.py")
        subprocess.run([vllm_python, str(script), str(smollm2_path), str(partial)], check=True)
        partial.rename(folder / "smollm2")
    return versions
