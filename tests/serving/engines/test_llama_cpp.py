"""llama.cpp with the real model: readiness, names, usage, faults; and the child's arguments."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from engine_harness import abandoned, alive, supervised, until, version

from serving.engines import llama_cpp_child
from serving.engines.base import EngineError, kind
from serving.engines.replica import free_port
from serving.engines.supervisor import Supervisor

PROJECT = Path(__file__).resolve().parents[3]
CHAT = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0, "max_tokens": 12}

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None and "MODELYARD_REQUIRE" not in os.environ,
        reason="xllamacpp is not there: pip install '.[llamacpp]'",
    ),
]


def events_of(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_ready_in_two_seconds_and_it_answers_by_its_own_name(root: Path, smollm2_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([version("v1", smollm2_path)])
        assert await supervisor.wait_ready(120) == []
        (status,) = supervisor.replicas()
        times = psutil.Process(status.pid).cpu_times()
        assert times.user + times.system < 2.0  # its own time, whatever else the machine does
        assert status.capabilities is not None
        assert status.capabilities.parallel_slots == 4
        assert status.capabilities.context_tokens == 2048
        assert status.capabilities.prefill
        assert status.capabilities.stream_usage
        assert status.capabilities.metrics
        assert not status.capabilities.prompt_logprobs
        assert not status.capabilities.embeddings
        url = f"http://127.0.0.1:{status.port}"
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            answer = await client.post(f"{url}/v1/chat/completions", json=CHAT | {"model": "assistant"})
            assert answer.json()["choices"][0]["message"]["content"]
            assert answer.json()["model"] == "assistant@v1"
            models = (await client.get(f"{url}/v1/models")).text
            assert "assistant@v1" in models
            for text in (answer.text, models):
                assert ".gguf" not in text
                assert str(smollm2_path.parent) not in text
            whole = answer.json()["usage"]
            streamed = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
            events = events_of((await client.post(f"{url}/v1/chat/completions", json=streamed)).text)
            assert events[-1]["choices"] == []
            assert [events[-1]["usage"][name] for name in ("prompt_tokens", "completion_tokens")] == [
                whole["prompt_tokens"],
                whole["completion_tokens"],
            ]
            text = "".join(one["choices"][0]["delta"].get("content") or "" for one in events[:-1])
            assert text == answer.json()["choices"][0]["message"]["content"]
            assert "llamacpp:" in (await client.get(f"{url}/metrics")).text
            foreign = await client.get(f"{url}/health", headers={"origin": "http://elsewhere"})
            assert foreign.headers.get("access-control-allow-origin", "") == ""

    supervised(root, body)


def test_idle_connections_do_not_keep_health_checks_waiting(root: Path, smollm2_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([version("v1", smollm2_path)])
        assert await supervisor.wait_ready(120) == []
        (status,) = supervisor.replicas()
        url = f"http://127.0.0.1:{status.port}/health"
        async with httpx.AsyncClient(trust_env=False, timeout=60, limits=httpx.Limits(max_connections=64)) as client:
            answers = await asyncio.gather(*(client.get(url) for _ in range(64)))
            assert {answer.status_code for answer in answers} == {200}
            began = time.monotonic()
            async with httpx.AsyncClient(trust_env=False) as another:
                await another.get(url, timeout=30)
            assert time.monotonic() - began < 4.0, "it waits for no idle connection to end"

    supervised(root, body)


def test_killed_it_comes_back_and_a_new_control_plane_adopts_it(root: Path, smollm2_path: Path) -> None:
    wanted = version("v1", smollm2_path)
    left = abandoned(root, wanted, PROJECT)

    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([wanted])
        assert await supervisor.wait_ready(120) == []
        (status,) = supervisor.replicas()
        assert (status.pid, status.adopted) == (left["pid"], True)
        os.kill(status.pid, signal.SIGKILL)
        await until(lambda: supervisor.replicas()[0].restarts == 1)
        assert await supervisor.wait_ready(120) == []
        (status,) = supervisor.replicas()
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            answer = await client.post(f"http://127.0.0.1:{status.port}/v1/chat/completions", json=CHAT)
            assert answer.status_code == 200

    supervised(root, body)
    assert not alive(left["pid"])


def test_an_unreadable_model_fails_with_the_last_log_lines(root: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + b"\0" * 100)

    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([version("v1", bad)])
        (status,) = await supervisor.wait_ready(120)
        assert status.state == "failed"
        assert "failed to load model" in status.last_error
        assert "llama.cpp could not start" in supervisor.log_tail(status.id, 1)[0]

    supervised(root, body)


@contextmanager
def child(model: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A child process that is ready, and its URL."""
    port = free_port()
    launch = kind("llama.cpp").launch(version("v1", model), port)
    with subprocess.Popen(launch.argv, cwd=launch.cwd, stderr=subprocess.DEVNULL) as running:
        try:
            end = time.monotonic() + 60
            while True:
                try:
                    assert httpx.get(f"{launch.url}/health", trust_env=False).status_code == 200
                    break
                except (httpx.TransportError, AssertionError):
                    assert time.monotonic() < end
                    time.sleep(0.05)
            yield running, launch.url
        finally:
            running.kill()


def test_sigterm_stops_it_while_it_generates(smollm2_path: Path) -> None:
    endless = {"prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    with (
        child(smollm2_path) as (running, url),
        httpx.stream("POST", f"{url}/v1/completions", json=endless, trust_env=False, timeout=30) as stream,
    ):
        lines = stream.iter_lines()  # kept: without it the client would leave
        next(lines)
        began = time.monotonic()
        running.terminate()
        assert running.wait(60) in (0, -signal.SIGALRM)
        assert time.monotonic() - began < 15, "two seconds; what it was asked for may keep it for half a minute"
        lines.close()


def test_embeddings_where_they_are_asked_for(root: Path, smollm2_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        arguments = {"embeddings": True, "pooling": "mean", "n_parallel": 2}
        await supervisor.apply([version("v1", smollm2_path, engine_args=arguments)])
        assert await supervisor.wait_ready(120) == []
        (status,) = supervisor.replicas()
        assert status.capabilities is not None
        assert status.capabilities.embeddings
        assert (status.capabilities.parallel_slots, status.capabilities.context_tokens) == (2, 2048)

    supervised(root, body)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine_args": {"n_contx": 1}}, "unknown engine_args.n_contx: did you mean 'n_ctx'?"),
        ({"engine_args": {"port": 1}}, "engine_args.port is set by Modelyard: leave it out"),
        ({"engine_args": {"n_ctx": "many"}}, "n_ctx must be a whole number, not 'many'"),
        ({"engine_args": {"n_ctx": True}}, "n_ctx must be a whole number, not True"),
        ({"engine_args": {"n_ctx": 10**12}}, "engine_args.n_ctx cannot be 1000000000000"),
        ({"engine_args": {"warmup": 1}}, "warmup must be true or false, not 1"),
        ({"engine_args": {"n_parallel": 0}}, "n_parallel is 0: it must be at least 1"),
        ({"engine_args": {"pooling": "avg"}}, "pooling cannot be 'avg': it is one of "),
        ({"engine_args": {"cache_type_k": "q8"}}, "cache_type_k cannot be 'q8': it is one of "),
        ({"engine_args": {"_x": 1}}, "unknown engine_args._x"),
        ({"sampling": {"temprature": 1}}, "unknown sampling.temprature: did you mean 'temperature'?"),
        ({"sampling": {"top_k": 0.5}}, "top_k must be a whole number, not 0.5"),
    ],
)
def test_arguments_that_are_not_usable(options: dict[str, Any], message: str) -> None:
    from xllamacpp import CommonParams

    with pytest.raises(llama_cpp_child.ArgumentError, match=re.escape(message)):
        llama_cpp_child.build(CommonParams(), options, threads=1)


def test_arguments_reach_llama_cpp() -> None:
    from xllamacpp import CommonParams, ggml_type, llama_flash_attn_type

    options = {
        "engine_args": {"n_parallel": 8, "cache_type_k": "q8_0", "flash_attn": True, "rope_freq_base": 10},
        "sampling": {"temperature": 0, "max_tokens": 7},
        "chat_template": "{{ x }}",
    }
    params = llama_cpp_child.build(CommonParams(), options, threads=3)
    assert (params.n_parallel, params.n_ctx, params.n_predict) == (8, 8 * 2048, 7)
    assert (params.cpuparams.n_threads, params.cpuparams_batch.n_threads) == (3, 3)
    assert params.cache_type_k == ggml_type.GGML_TYPE_Q8_0
    assert params.flash_attn_type == llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    assert (params.rope_freq_base, params.sampling.temp, params.chat_template) == (10.0, 0.0, "{{ x }}")
    given = llama_cpp_child.build(CommonParams(), {"engine_args": {"n_threads": 5, "n_ctx": 512}}, threads=1)
    assert (given.cpuparams.n_threads, given.n_ctx) == (5, 512)


def test_check_asks_the_child(smollm2_path: Path) -> None:
    kind("llama.cpp").check(version("v1", smollm2_path, engine_args={"n_ctx": 1024}))
    with pytest.raises(EngineError, match=r"assistant@v1: unknown engine_args\.n_paralel: did you mean 'n_parallel'"):
        kind("llama.cpp").check(version("v1", smollm2_path, engine_args={"n_paralel": 1}))
    assert set(kind("llama.cpp").environment(version("v1", smollm2_path))) == {"xllamacpp"}


def test_a_wrong_command_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["child"])
    with pytest.raises(SystemExit, match="2"):
        llama_cpp_child.main()
    assert "--model" in capsys.readouterr().err


def test_the_child_starts_without_the_rest_of_the_project() -> None:
    code = (
        "import sys, serving.engines.llama_cpp_child as c; "
        "print([m for m in sys.modules if m.split('.')[0] in ('registry', 'httpx', 'msgspec', 'pydantic', 'psutil')])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
