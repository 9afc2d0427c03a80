"""The bridge to a hosted API: LiteLLM itself, against a fake provider that counts, fails and filters."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from engine_harness import alive, supervised, until, version
from engines.fixtures import FakeEngine, start_fake_engine
from router_harness import RouterProcess, model, running_router
from router_harness import until as wait_until
from router_harness import version as arm

from registry.manifest import Manifest, canonical
from serving.engines import hosted
from serving.engines.base import EngineError, EngineMissingError, EngineVersion, fingerprint, kind, minimal_environment
from serving.engines.hosted_child import KEY
from serving.engines.hosted_wire import passage
from serving.engines.lifecycle import Policy
from serving.engines.replica import free_port
from serving.engines.supervisor import Supervisor
from serving.router.table import Replica, Retry, Version

SECRET = "sk-only-the-bridge-knows-7f3a"
WELL: dict[str, Any] = {
    "status": 200,
    "status_times": 0,
    "retry_after_s": 0,
    "error_code": "",
    "error_type": "",
    "error_message": "the fake engine was told to fail",
    "finish_reason": "",
    "context_tokens": 0,
    "events": 8,
    "gap_s": 0.0,
    "cut_after_events": -1,
    "end_after_events": -1,
    "error_event_after_events": -1,
    "garbage": False,
}
LET_IN = {"authorization": passage(SECRET)}
CHAT = {"model": "assistant", "messages": [{"role": "user", "content": "one two three"}]}


def wanted(url: str = "http://127.0.0.1:1/v1", python: str = "", **fields: Any) -> EngineVersion:
    """The version `cloud`, whose provider is at `url`."""
    fields = {"litellm_model": "openai/gpt-4o-mini", **fields}
    made = version("cloud", engine="hosted", url=url, python=python, **fields)
    return replace(made, authorization=f"Bearer {SECRET}", key_variable="PROVIDER_KEY")


def start(launch_of: EngineVersion, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """The bridge as the supervisor would start it, once it is ready: the process and its URL."""
    port = free_port()
    launch = kind("hosted").launch(launch_of, port)
    env = minimal_environment(os.environ) | dict(launch.env)
    with (folder / "bridge.log").open("wb") as log:
        process = subprocess.Popen(launch.argv, cwd=launch.cwd, env=env, stdout=log, stderr=log)
    until = time.monotonic() + 120
    while True:
        assert process.poll() is None, (folder / "bridge.log").read_text()
        try:
            httpx.get(f"{launch.url}/health", trust_env=False).raise_for_status()
        except httpx.HTTPError:
            assert time.monotonic() < until, "the bridge did not come up"
            time.sleep(0.05)
        else:
            return process, launch.url


class Bridge:
    """A running bridge, its provider, and the log that it writes."""

    def __init__(self, provider: FakeEngine, url: str, log: Path) -> None:
        self.provider = provider
        self.url = url
        self.log = log
        self.client = httpx.Client(base_url=url, trust_env=False, timeout=60, headers=LET_IN)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def chat(self, **changes: Any) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json=CHAT | changes)


@pytest.fixture(scope="module")
def running(hosted_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    provider = start_fake_engine()
    folder = tmp_path_factory.mktemp("bridge")
    process, url = start(wanted(f"{provider.url}/v1", hosted_python), folder)
    bridge = Bridge(provider, url, folder / "bridge.log")
    yield bridge
    bridge.client.close()
    process.terminate()
    assert process.wait(60) == 0
    provider.kill()
    assert provider.process.stdout is not None
    provider.process.stdout.close()
    assert SECRET not in bridge.log.read_text()


@pytest.fixture
def bridge(running: Bridge) -> Bridge:
    """The bridge with a provider that is well."""
    running.provider.behave(**WELL)
    return running


def events_of(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


# --- the kind ---


def test_the_key_is_in_the_bridges_environment_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosted, "found_interpreter", lambda: "/usr/bin/python3")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    one = wanted()
    launch = kind("hosted").launch(one, 1234)
    assert launch.env == {"HTTPS_PROXY": "http://proxy:3128", KEY: SECRET}
    assert SECRET not in repr((launch, one, one.manifest, canonical(one.manifest)))
    assert SECRET not in "".join((*launch.argv, *launch.files.values()))
    assert SECRET not in str(launch.headers)
    other = replace(one, authorization="Bearer another")
    assert fingerprint(kind("hosted"), one) != fingerprint(kind("hosted"), other), "a new key starts a new bridge"


def test_the_model_is_part_of_the_digest_and_leaves_other_digests_alone() -> None:
    assert wanted().digest != wanted(litellm_model="openai/gpt-4o").digest
    assert b"litellm" not in canonical(Manifest(engine="llama.cpp"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"engine_args": {"api_key": "sk"}}, "api_key_env:"),
        ({"engine_args": {"api_base": "http://x"}}, "`url:`"),
        ({"engine_args": {"fallbacks": []}}, "unknown engine_args.fallbacks"),
        ({"engine_args": {"timeout": 5}}, "did you mean 'timeout_s'"),
        ({"engine_args": {"timeout_s": 0}}, "must be positive"),
        ({"engine_args": {"timeout_s": True}}, "must be a number"),
        ({"engine_args": {"mode": "image"}}, "none of chat"),
        ({"sampling": {"top_k": 3}}, "unknown sampling.top_k"),
        ({"sampling": {"messages": []}}, "unknown sampling.messages"),
    ],
)
def test_what_a_hosted_engine_does_not_take_is_one_sentence(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineError, match=r".+") as error:
        kind("hosted").launch(wanted(**fields), 1)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_litellm_says_what_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hosted, "found_interpreter", lambda: None)
    with pytest.raises(EngineMissingError, match="make hosted"):
        kind("hosted").check(wanted())
    with pytest.raises(EngineMissingError, match="no Python interpreter"):
        kind("hosted").check(wanted(python=str(tmp_path / "python")))
    with pytest.raises(EngineMissingError, match="has no LiteLLM: run `make hosted`"):
        kind("hosted").check(wanted(python="/usr/bin/python3"))


@pytest.mark.hosted
def test_the_environment_names_litellm(hosted_python: str) -> None:
    found = kind("hosted").environment(wanted(python=hosted_python))
    assert found.keys() == {"litellm"}
    assert found["litellm"][0].isdigit()


# --- the bridge ---


@pytest.mark.hosted
def test_answers_are_openais_with_the_providers_own_usage(bridge: Bridge) -> None:
    bridge.provider.behave(events=4)
    whole = bridge.chat(top_k=5, temperature=0).json()
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "t0 t1 t2 t3"}
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    plain = bridge.chat(stream=True)
    assert plain.headers["content-type"] == "text/event-stream"
    assert plain.text.endswith("data: [DONE]\n\n")
    assert all("usage" not in event for event in events_of(plain.text)), "nobody asked for it"
    events = events_of(bridge.chat(stream=True, stream_options={"include_usage": True}).text)
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events[:-1])
    assert (text, events[-2]["choices"][0]["finish_reason"]) == ("t0 t1 t2 t3", "stop")
    assert events[-1]["choices"] == []
    assert [events[-1]["usage"][name] for name in ("prompt_tokens", "completion_tokens")] == [3, 4]


@pytest.mark.hosted
def test_completions_and_embeddings_too(bridge: Bridge) -> None:
    bridge.provider.behave(events=3)
    found = bridge.client.post("/v1/completions", json={"model": "x", "prompt": "a b"}).json()
    assert (found["object"], found["choices"][0]["text"], found["usage"]["prompt_tokens"]) == (
        "text_completion",
        "t0 t1 t2",
        2,
    )
    asked = {"prompt": "a b", "stream": True, "stream_options": {"include_usage": True}}
    events = events_of(bridge.client.post("/v1/completions", json=asked).text)
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == "t0 t1 t2"
    assert (events[-1]["choices"], events[-1]["usage"]["completion_tokens"]) == ([], 3)
    vectors = bridge.client.post("/v1/embeddings", json={"model": "x", "input": "a b"}).json()
    assert (vectors["data"][0]["embedding"], vectors["usage"]["prompt_tokens"]) == ([0.6, 0.8], 2)


@pytest.mark.hosted
def test_the_provider_gets_the_key_and_nothing_of_the_clients(bridge: Bridge) -> None:
    headers = {"x-api-key": "of-the-client", "cookie": "of-the-client"}
    tempting = {"api_base": "http://127.0.0.1:9", "api_key": "of-the-client", "extra_headers": {"x": "of-the-client"}}
    bridge.client.post("/v1/chat/completions", json=CHAT | tempting, headers=headers).raise_for_status()
    last = bridge.provider.stats()["requests"][-1]
    assert dict(last["headers"])["authorization"] == f"Bearer {SECRET}"
    assert "of-the-client" not in json.dumps(last)
    assert last["model"] == "gpt-4o-mini"


@pytest.mark.hosted
@pytest.mark.parametrize("said", ["", "Bearer x", f"Bearer {SECRET}", passage("another")])
def test_whoever_else_reaches_the_port_spends_nothing(bridge: Bridge, said: str) -> None:
    before = bridge.provider.stats()["seen"]
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
        answer = bridge.client.post(path, json=CHAT, headers={"authorization": said})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "not_let_in")
    assert bridge.provider.stats()["seen"] == before


@pytest.mark.hosted
def test_readiness_names_and_capabilities_ask_the_provider_nothing(bridge: Bridge) -> None:
    before = bridge.provider.stats()["seen"]
    assert bridge.client.get("/health").status_code == 200
    assert bridge.client.get("/v1/models").json()["data"][0]["id"] == "assistant@cloud"
    found = bridge.client.get("/modelyard/capabilities").json()
    assert (found["chat"], found["stream_usage"], found["context_tokens"]) == (True, True, 128_000)
    assert found["input_price_per_million"] == pytest.approx(0.15)
    assert bridge.provider.stats()["seen"] == before


FAULTS: list[tuple[dict[str, Any], int, str]] = [
    ({"status": 400, "error_code": "content_filter", "error_type": "content_filter"}, 400, "content_filter"),
    ({"status": 400, "error_code": "content_policy_violation"}, 400, "content_policy_violation"),
    ({"context_tokens": 2}, 400, "context_length_exceeded"),
    ({"status": 401, "error_code": "invalid_api_key", "error_message": f"bad: {SECRET}"}, 502, "provider_refused_key"),
    ({"status": 404, "error_code": "model_not_found"}, 502, "provider_model_not_found"),
    ({"status": 503, "error_code": "overloaded"}, 503, "overloaded"),
    ({"garbage": True}, 502, "provider_unreachable"),
]


@pytest.mark.hosted
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fault", "status", "code"), FAULTS, ids=[code for _, _, code in FAULTS])
def test_a_providers_error_keeps_its_shape_status_and_code(
    bridge: Bridge, fault: dict[str, Any], status: int, code: str, stream: bool
) -> None:
    before = bridge.provider.stats()["seen"]
    bridge.provider.behave(**fault)
    answer = bridge.chat(stream=stream)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert error.keys() >= {"message", "type", "param", "code"}
    assert SECRET not in answer.text
    assert ("PROVIDER_KEY" in error["message"]) == (code == "provider_refused_key")
    assert bridge.provider.stats()["seen"] == before + 1, "the router tries again, not the bridge"


@pytest.mark.hosted
def test_a_rate_limit_comes_with_its_retry_after(bridge: Bridge) -> None:
    bridge.provider.behave(status=429, retry_after_s=7, error_code="rate_limit_exceeded")
    for stream in (False, True):
        answer = bridge.chat(stream=stream)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.hosted
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"cut_after_events": 3}, "provider_unreachable"),
        ({"end_after_events": 3}, "stream_truncated"),
        ({"error_event_after_events": 3, "error_message": "x"}, 500),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_cut_stream_never_looks_like_a_finished_one(
    bridge: Bridge, fault: dict[str, Any], code: Any, path: str
) -> None:
    """LiteLLM by itself ends a stream whose provider stopped in the middle with `finish_reason: stop`."""
    bridge.provider.behave(**fault)
    text = bridge.client.post(path, json=CHAT | {"prompt": "a", "stream": True}).text
    events = events_of(text)
    assert events[-1]["error"]["code"] == code
    assert not any(choice.get("finish_reason") for event in events[:-1] for choice in event["choices"])
    assert "[DONE]" not in text


@pytest.mark.hosted
def test_a_client_that_leaves_a_stream_cancels_the_call_at_once(bridge: Bridge) -> None:
    def leave() -> None:
        with bridge.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as answer:
            next(answer.iter_bytes())

    assert cancelled_within_s(bridge, leave) < 0.5


@pytest.mark.hosted
def test_a_client_that_leaves_before_the_answer_cancels_the_call_at_once(bridge: Bridge) -> None:
    body = json.dumps(CHAT).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in LET_IN.items()]
    request = "\r\n".join([*lines, "", ""]).encode() + body

    def leave() -> None:
        with socket.create_connection(("127.0.0.1", bridge.port)) as client:
            client.sendall(request)
            wait_until(lambda: bridge.provider.stats()["running"] == 1)

    assert cancelled_within_s(bridge, leave) < 0.5


def cancelled_within_s(bridge: Bridge, leave: Callable[[], None]) -> float:
    """How soon after a client left the provider saw its client go: the least of five, since a busy machine spoils some.
    Each answer would take minutes."""
    bridge.provider.behave(events=3000, gap_s=0.1)
    took_s = []
    for _ in range(5):
        before = bridge.provider.stats()["cancelled"]
        leave()
        left = time.time()
        wait_until(lambda before=before: bridge.provider.stats()["cancelled"] > before)  # type: ignore[misc]
        took_s.append(float(bridge.provider.stats()["requests"][-1]["ended_at"]) - left)
    return min(took_s)


@pytest.mark.hosted
def test_a_stop_lets_answers_end_and_leaves_nothing(
    hosted_python: str, fake_engine: Callable[..., FakeEngine], tmp_path: Path
) -> None:
    provider = fake_engine("--events", "10", "--gap-s", "0.1")
    process, url = start(wanted(f"{provider.url}/v1", hosted_python), tmp_path)
    texts: list[str] = []

    def ask() -> None:
        body = CHAT | {"stream": True}
        texts.append(httpx.post(f"{url}/v1/chat/completions", json=body, headers=LET_IN, timeout=60).text)

    asking = threading.Thread(target=ask)
    asking.start()
    while not provider.stats()["running"]:
        time.sleep(0.02)
    assert psutil.Process(process.pid).children() == []
    process.terminate()
    assert process.wait(60) == 0
    asking.join(60)
    assert texts[0].endswith("data: [DONE]\n\n")


# --- under the supervisor ---


@pytest.mark.hosted
def test_the_supervisor_starts_declares_and_ends_it(
    root: Path, hosted_python: str, fake_engine: Callable[..., FakeEngine]
) -> None:
    provider = fake_engine()
    one = wanted(f"{provider.url}/v1", hosted_python)
    pids: list[int] = []

    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([one])
        assert await supervisor.wait_ready(120) == []
        (status,) = supervisor.replicas()
        pids.append(status.pid)
        assert status.capabilities is not None
        assert (status.capabilities.chat, status.capabilities.prefill) == (True, False)
        assert status.capabilities.context_tokens == 128_000
        assert status.capabilities.output_price_per_million == pytest.approx(0.6)
        assert (status.served_names, status.kind) == (("*",), "hosted")
        assert SECRET not in " ".join(psutil.Process(status.pid).cmdline())
        os.kill(status.pid, signal.SIGKILL)
        await until(lambda: supervisor.replicas()[0].restarts == 1)
        assert await supervisor.wait_ready(120) == []
        pids.append(supervisor.replicas()[0].pid)

    supervised(root, body, policy=Policy())
    assert not any(map(alive, pids))
    assert all(SECRET not in path.read_text() for path in root.rglob("*") if path.is_file())
    assert provider.stats()["seen"] == 0, "neither readiness nor the probe costs money"


@pytest.mark.hosted
def test_an_unknown_provider_fails_at_once_with_one_sentence(root: Path, hosted_python: str) -> None:
    one = wanted(python=hosted_python, litellm_model="nobody-knows-this/model", url="")

    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([one])
        (status,) = await supervisor.wait_ready(120)
        assert (status.state, status.restarts) == ("failed", 0)
        assert "LiteLLM knows no provider of 'nobody-knows-this/model'" in status.last_error

    supervised(root, body, policy=Policy())


# --- through a router ---


@pytest.fixture
def router(tmp_path: Path) -> Iterator[RouterProcess]:
    with running_router(tmp_path) as process:
        yield process


def cloud(bridge: Bridge) -> Version:
    replica = Replica(id="assistant@cloud/0", host="127.0.0.1", port=bridge.port, authorization=passage(SECRET))
    return Version(label="cloud", replicas=(replica,))


@pytest.mark.hosted
def test_a_dead_engine_falls_back_to_the_hosted_one(router: RouterProcess, bridge: Bridge) -> None:
    dead = free_port()
    versions = [arm("v1", [dead]), cloud(bridge)]
    router.publish(model(versions, {"v1": 10_000}, fallback=("cloud",), retry=Retry(backoff_s=0.01)))
    for stream in (False, True):
        answer = router.chat(stream=stream)
        assert (answer.status_code, answer.headers["x-modelyard-version"]) == (200, "assistant@cloud")
        assert SECRET not in answer.text + str(answer.headers)
    records = router.records(2)
    assert {(one.version, one.assigned, one.outcome) for one in records} == {("cloud", "v1", "completed")}
    assert {(one.prompt_tokens, one.completion_tokens, one.usage_source) for one in records} == {(3, 8, "engine")}


@pytest.mark.hosted
def test_the_router_acts_on_what_the_provider_said(
    router: RouterProcess, bridge: Bridge, fake_engine: Callable[..., FakeEngine]
) -> None:
    """A filter's refusal goes through, a long request goes to the larger version, a short Retry-After is waited for."""
    spare = fake_engine()
    versions = [cloud(bridge), arm("spare", [spare.port])]
    options: dict[str, Any] = {"fallback": ("spare",), "larger_context": ("spare",), "retry": Retry(backoff_s=0.01)}
    router.publish(model(versions, {"cloud": 10_000}, **options))
    bridge.provider.behave(status=400, error_code="content_filter", error_type="content_filter")
    filtered = router.chat()
    assert (filtered.status_code, filtered.headers["x-modelyard-attempts"]) == (400, "1")
    assert filtered.json()["error"]["code"] == "content_filter"
    assert spare.stats()["seen"] == 0
    bridge.provider.behave(**WELL | {"context_tokens": 2})
    assert router.chat().headers["x-modelyard-version"] == "assistant@spare"
    spare.kill()
    bridge.provider.behave(**WELL | {"status": 429, "status_times": 1, "retry_after_s": 1})
    began = time.monotonic()
    waited = router.chat()
    assert (waited.status_code, waited.headers["x-modelyard-version"]) == (200, "assistant@cloud")
    assert time.monotonic() - began >= 1
