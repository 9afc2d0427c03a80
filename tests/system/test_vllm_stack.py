"""vLLM behind the router: both versions answer under one name, and their tokens are counted exactly."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from stack import Stack, until

from eval import providers
from eval.providers import Prompt, Question
from eval.providers.in_process import InProcess
from eval.providers.texts import Text
from eval.providers.token_drift import measure
from eval.results import Subject
from eval.suite import Message
from monitoring.engine_metrics import COUNTERS, GAUGES

pytestmark = [pytest.mark.system, pytest.mark.vllm, pytest.mark.timeout(600)]
ARGUMENTS = {"enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 4, "env": {"VLLM_CPU_KVCACHE_SPACE": "1"}}
ASK = [{"role": "user", "content": "What is the capital of France?"}]


def predicted(stack: Stack) -> dict[str, tuple[int, int]]:
    """Prompt and completion tokens that each engine says it has worked on, by version."""
    found = {}
    for engine in stack.admin("/status")["engines"]:
        text = httpx.get(f"http://{engine['host']}:{engine['port']}/metrics", timeout=30).text
        counts = [
            re.search(rf"^vllm:{name}_tokens_total\{{[^}}]*\}} ([\d.e+]+)", text, re.MULTILINE)
            for name in ("prompt", "generation")
        ]
        found[engine["id"].partition("/")[0]] = tuple(int(float(count[1])) for count in counts if count)
    return found


def settled(stack: Stack) -> dict[str, tuple[int, int]]:
    """The same, once the engines have been asked what they can do: that is work too."""
    before: dict[str, tuple[int, int]] = {}
    while (now := predicted(stack)) != before:
        before = now
        time.sleep(5)
    return now


def counted(stack: Stack) -> dict[str, tuple[int, int]]:
    usage = stack.json("cost")["usage"]
    return {row["version"]: (row["prompt_tokens"], row["completion_tokens"]) for row in usage}


def every_reading_of_an_engine_is_there(stack: Stack) -> None:
    """llama.cpp does not say how full its KV cache is, and does not preempt: panels have both from vLLM alone."""
    text = httpx.get(f"{stack.admin_url}/metrics", trust_env=False, timeout=30).text
    seen = {
        (family.name, sample.labels["version"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.name.startswith("modelyard_engine_")
    }
    wanted = {f"modelyard_engine_{name}" for name in [*GAUGES, *COUNTERS]}
    assert {(name, version) for name in wanted for version in ("v1", "v2")} - seen.keys() == set()
    assert all(0 <= seen["modelyard_engine_kv_cache_usage_ratio", version] <= 1 for version in ("v1", "v2"))
    assert not [key for key, value in seen.items() if key[0] == "modelyard_engine_reading_absent" and value]


def speak_other_apis(stack: Stack, client: openai.OpenAI) -> None:
    """Responses and messages, whole and streamed: their tokens are in the counts that follow."""
    asked = {"model": "assistant@v1", "input": "Say hello", "max_output_tokens": 6}
    assert client.responses.create(**asked).usage.output_tokens <= 6
    *_, last = client.responses.create(**asked, stream=True)
    assert last.type in {"response.completed", "response.incomplete"}
    message = {"model": "assistant@v1", "messages": ASK, "max_tokens": 6}
    with httpx.Client(base_url=stack.url, trust_env=False, timeout=120) as http:
        assert http.post("/v1/messages", json=message).json()["usage"]["output_tokens"] <= 6
        streamed = http.post("/v1/messages", json={**message, "stream": True})
        assert streamed.text.rstrip().endswith('data: {"type":"message_stop"}')
        assert http.post("/v1/embeddings", json={"model": "assistant@v1", "input": "a"}).status_code == 404


def a_cut_stream_goes_on(stack: Stack, client: openai.OpenAI) -> None:
    """The engine is killed after a few tokens; the other version, declared equivalent, says the rest."""
    asked = {"model": "assistant", "messages": ASK, "max_tokens": 24, "temperature": 0, "extra_body": {"ignore_eos": 1}}
    asked |= {"stream": True, "stream_options": {"include_usage": True}}
    (whole,) = [chunk.usage for chunk in client.chat.completions.create(**asked) if chunk.usage]
    assert whole.completion_tokens == 24
    text, ids, usages = "", set(), []
    raw = client.chat.completions.with_raw_response.create(**asked)
    replica = f"{raw.headers['x-modelyard-version']}/0"
    (engine,) = [one for one in stack.admin("/status")["engines"] if one["id"] == replica]
    processes = [psutil.Process(engine["pid"]), *psutil.Process(engine["pid"]).children(recursive=True)]
    for count, chunk in enumerate(raw.parse()):
        ids.add(chunk.id)
        usages += [chunk.usage] if chunk.usage else []
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        if count == 6:
            for process in processes:
                process.kill()
    assert len(ids) == 1
    assert text
    assert [(one.prompt_tokens, one.completion_tokens) for one in usages] == [(whole.prompt_tokens, 24)]
    counted_once = r'^modelyard_continuations_total\{model="assistant",version="v[12]"\} 1'
    url = f"{stack.admin_url}/metrics"
    until(lambda: re.search(counted_once, httpx.get(url, timeout=30).text, re.MULTILINE), what="the count of the cut")


def compare_distributions(stack: Stack, python: str, checkpoints: tuple[Path, Path]) -> None:
    """Prompt log-probabilities through the router bound what transformers computes from the same checkpoints."""
    refs = ["assistant@v1", "assistant@v2"]
    sentences = [
        "The capital of France is Paris, which lies on the Seine.",
        "Water boils at one hundred degrees at sea.",
    ]
    read = [Text(sentence[:5], Prompt(text=sentence), answered=False) for sentence in sentences]
    choices = [Question(Prompt(text="The capital of France is"), choice) for choice in (" Paris", " a small town")]
    choices += [Question(Prompt(messages=(Message("user", "Hello"),)), "Hello!")]
    with ExitStack() as open_ones:
        served = [providers.find(Subject(ref=ref, model=ref, url=stack.url), "top_k") for ref in refs]
        exact = [InProcess("transformers", folder, python=python, threads=1) for folder in checkpoints]
        for one in (*served, *exact):
            open_ones.callback(one.close)
        capabilities = served[0].capabilities
        assert (capabilities.top_k, capabilities.full_vocabulary, capabilities.context_tokens) == (20, False, 1024)
        assert capabilities.tokenizer_digest == exact[0].capabilities.tokenizer_digest
        bound, whole = measure(*served, read).collected, measure(*exact, read).collected
        assert (bound.bound, whole.bound) == ("lower bound", "exact")
        for lower, full in zip(bound.parts, whole.parts, strict=True):
            assert 0.02 < lower.kl.mean() <= full.kl.mean() + 0.03, "vLLM computes in bfloat16"
            assert lower.log_p == pytest.approx(full.log_p, abs=0.5)
        for ours, theirs in zip(served[0].score(choices), exact[0].score(choices), strict=True):
            assert ours.likelihood is not None
            assert theirs.likelihood is not None
            assert ours.likelihood.tokens == theirs.likelihood.tokens
            assert ours.likelihood.log_probability == pytest.approx(
                theirs.likelihood.log_probability, abs=0.15 * ours.likelihood.tokens
            )
        answered = [Text("hello", Prompt(messages=(Message("user", "Hello"),)), answered=True)]
        assert 0 < len(measure(*served, answered, answer_tokens=8).collected.parts[0].kl) <= 8
        with pytest.raises(providers.CapabilityError, match="the whole vocabulary is needed"):
            providers.find(Subject(ref=refs[0], model=refs[0], url=stack.url), "full_vocabulary")


def test_two_vllm_versions_behind_one_name(
    yard: Callable[[str], Stack], vllm_python: str, vllm_checkpoints: tuple[Path, Path]
) -> None:
    versions = {
        label: {"engine": "vllm", "python": vllm_python, "artifact": f"file:{folder}", "engine_args": ARGUMENTS}
        for label, folder in zip(("v1", "v2"), vllm_checkpoints, strict=True)
    }
    model = {"versions": versions, "route": {"v1": 5000, "v2": 5000}, "fallback": ["v1"]}
    model["equivalent"] = [["v1", "v2"]]
    stack = yard(f"models: {json.dumps({'assistant': model})}").up(timeout_s=400)
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0, timeout=120)
    before = settled(stack)
    tokens_before = counted(stack)
    answered: Counter[str] = Counter()
    for number in range(12):
        session = {"x-session-id": f"s{number}"}
        name = ("assistant", "assistant@v1", "assistant@v2")[number % 3]
        options = {"stream": True} if number % 2 else {}
        if number % 4 == 3:
            options["stream_options"] = {"include_usage": True}
        raw = client.chat.completions.with_raw_response.create(
            model=name, messages=ASK, max_tokens=6, temperature=0, extra_headers=session, **options
        )
        version = raw.headers["x-modelyard-version"]
        answered[version] += 1
        assert name in ("assistant", version)
        answer = raw.parse()
        if options:
            chunks = list(answer)
            assert any(chunk.choices and chunk.choices[0].delta.content for chunk in chunks)
            assert [bool(chunk.usage) for chunk in chunks if not chunk.choices] == [True] * (
                "stream_options" in options
            )
        else:
            assert answer.usage.completion_tokens <= 6
    assert set(answered) == {"assistant@v1", "assistant@v2"}
    speak_other_apis(stack, client)
    after = predicted(stack)

    def agree() -> bool:
        tokens_after = counted(stack)
        return all(
            [b - a for a, b in zip(before[version], after[version], strict=True)]
            == [b - a for a, b in zip(tokens_before.get(version, (0, 0)), tokens_after[version], strict=True)]
            for version in answered
        )

    until(agree, what="as many tokens in our books as in the engines' own")
    until(lambda: stack.engine_tokens() == after, what="the engines' own counters in our metrics")
    every_reading_of_an_engine_is_there(stack)
    compare_distributions(stack, vllm_python, vllm_checkpoints)
    a_cut_stream_goes_on(stack, client)
    client.close()
    assert stack.stop() == 0
    until(lambda: not stack.processes(), what="the end of every process")
