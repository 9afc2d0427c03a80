"""Real llama.cpp engines, one of which is killed in the middle of its stream, at every tenth token.

At temperature 0 the text that the client gets is compared with the uncut one, and usage with the uncut one's.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from components import ROOT
from router_harness import RouterProcess, model, running_router, version
from stack import free_ports

pytestmark = [pytest.mark.engine, pytest.mark.system]

PROMPTS = ("Count from 1 to 40, separated by commas.", "Write a short story about a river and list three animals.")
"""Answers without near ties: what a replica computes of the partial text in one batch differs in its last bits from
what it computes token by token, and a tie may fall the other way (how often: benchmarks/continuation.py)."""
TOKENS = 80
STEP = 10


@dataclass
class Engine:
    """A llama.cpp engine that can be killed and started again on its port."""

    model: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "serving.engines.llama_cpp_child", "--model", str(self.model)]
        command += ["--alias", "m", "--port", str(self.port), "--options", json.dumps({"engine_args": {"n_ctx": 4096}})]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/health", trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                assert self.process.poll() is None, "the engine ended"
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def engines(smollm2_path: Path) -> Iterator[list[Engine]]:
    pytest.importorskip("xllamacpp")
    found = [Engine(smollm2_path, port) for port in free_ports(2)]
    try:
        for engine in found:
            engine.start()
        yield found
    finally:
        for engine in found:
            engine.kill()


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory, engines: list[Engine]) -> Iterator[RouterProcess]:
    with running_router(tmp_path_factory.mktemp("router")) as worker:
        publish(worker, engines)
        yield worker


def publish(worker: RouterProcess, engines: list[Engine]) -> None:
    """The table that a control plane would publish now."""
    found = version("v1", [engine.port for engine in engines], names=("m",))
    replicas = tuple(
        msgspec.structs.replace(replica, state="ready" if engine.process else "down")
        for replica, engine in zip(found.replicas, engines, strict=True)
    )
    found = msgspec.structs.replace(found, prefill=True, replicas=replicas)
    worker.publish(model([found], {"v1": 10_000}))


def stream(router: RouterProcess, prompt: str, engines: list[Engine], kill_after: int = 0) -> tuple[str, Any, str]:
    """The text, the usage and the id of one stream; the engine that serves it is killed after so many tokens."""
    body = {
        "model": "assistant",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "cache_prompt": False,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text, usage, events, ids = "", None, 0, set()
    serving: Engine | None = None
    with router.client.stream("POST", "/v1/chat/completions", json=body, timeout=120) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            assert "error" not in chunk, chunk
            ids.add(chunk["id"])
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                said = choice["delta"].get("content") or ""
                text += said
                events += bool(said)
            if kill_after and serving is None:  # asked at the start: the end of a stream does not wait for the question
                (replica,) = router.control.stats().inflight
                serving = engines[int(replica.rpartition("/")[2])]
            if serving is not None and events == kill_after:
                kill_after = 0
                serving.kill()
    assert len(ids) == 1
    return text, usage, ids.pop()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_stream_survives_its_engine_at_every_tenth_token(
    router: RouterProcess, engines: list[Engine], prompt: str
) -> None:
    whole, usage, _ = stream(router, prompt, engines)
    differing = []
    cuts = range(STEP, usage["completion_tokens"], STEP)
    for cut in cuts:
        text, used, _ = stream(router, prompt, engines, kill_after=cut)
        publish(router, engines)
        for engine in engines:
            if engine.process is None:
                engine.start()
        publish(router, engines)
        record = (router.control.stats(), router.records(1))[1][-1]
        assert (record.outcome, record.continuations) == ("completed", 1)
        assert record.completion_tokens == used["completion_tokens"]
        assert used["prompt_tokens"] == usage["prompt_tokens"]
        if (text, used["completion_tokens"]) != (whole, usage["completion_tokens"]):
            at = next((i for i, (a, b) in enumerate(zip(whole, text, strict=False)) if a != b), len(text))
            differing.append((cut, whole[max(0, at - 30) : at + 30], text[max(0, at - 30) : at + 30], used))
    assert not differing, "\n".join(map(str, differing))
    assert router.control.stats().inflight == {}
