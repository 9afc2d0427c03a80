"""Streams that are cut after their first token: what goes on is seamless, what cannot go on says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import msgspec
import pytest
from engines.fixtures import FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from router_harness import RouterProcess, model, until, version

from registry.usage import RequestRecord
from serving.router.continuation import CHAT, Partial, Resumption, payload_of, resume
from serving.router.table import Timeouts, Version

Start = Callable[..., FakeEngine]
Json = dict[str, Any]
STREAM = {"model": "assistant", "messages": [{"role": "user", "content": "hi"}], "stream": True}
WORDS = [f"{' ' if i else ''}t{i}" for i in range(8)]


def able(label: str, ports: Sequence[int]) -> Version:
    return msgspec.structs.replace(version(label, ports), prefill=True)


def chunks_of(response: httpx.Response) -> list[Json]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def text_of(chunks: Sequence[Json]) -> str:
    choices = [choice for chunk in chunks for choice in chunk.get("choices", [])]
    return "".join((c.get("delta") or {}).get("content") or c.get("text") or "" for c in choices)


def was_asked(engine: FakeEngine) -> bool:
    """Whether a request came to the engine, which may have died of it."""
    try:
        return bool(engine.stats()["seen"])
    except httpx.TransportError:
        return True


def last_record(router: RouterProcess, count: int = 1) -> RequestRecord:
    """The newest record, once there are `count`."""
    router.control.stats()  # it writes what waits
    return router.records(count)[-1]


def cut_then_whole(router: RouterProcess, fake_engine: Start, *flags: str, **options: Any) -> tuple[FakeEngine, ...]:
    """Two replicas of v1: the first one fails as the flags say, but only once it is chosen."""
    first, second = fake_engine(*flags), fake_engine()
    router.publish(model([able("v1", [first.port, second.port])], {"v1": 10_000}, **options))
    return first, second


FAULTS = [
    ("--cut-after-events", "3"),
    ("--end-after-events", "3"),
    ("--die-after-events", "3"),
    ("--error-event-after-events", "3"),
    ("--stall-after-events", "3"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0][2:])
@pytest.mark.parametrize("asked", [True, False], ids=["usage", "no usage"])
def test_a_cut_stream_goes_on_from_another_replica(
    router: RouterProcess, fake_engine: Start, fault: tuple[str, str], asked: bool
) -> None:
    first, second = cut_then_whole(router, fake_engine, *fault, timeouts=Timeouts(between_tokens_s=1.5))
    options = {"stream_options": {"include_usage": True}} if asked else {}
    while True:  # until the failing replica was the one chosen
        response = router.chat(stream=True, max_tokens=8, **options)
        if was_asked(first):
            break
    chunks = chunks_of(response)
    assert text_of(chunks) == "".join(WORDS)
    assert response.text.rstrip().endswith("data: [DONE]")
    assert "error" not in response.text
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks if chunk["choices"]].count("assistant") == 1
    finish = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert finish in (["stop"], ["length"])
    usage = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert usage == ([{"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}] if asked else [])
    record = last_record(router)
    assert (record.outcome, record.continuations, record.completion_tokens) == ("completed", 1, 8)
    assert (record.prompt_tokens, record.usage_source, record.events) == (3, "engine", 8)
    continued = second.stats()["requests"][-1]
    body = json.loads(continued["body"])
    assert body["messages"][-1] == {"role": "assistant", "content": "t0 t1 t2"}
    assert body["max_tokens"] == 5


def test_completions_go_on_too(router: RouterProcess, fake_engine: Start) -> None:
    first, second = cut_then_whole(router, fake_engine, "--cut-after-events", "3")
    while True:
        body = {"model": "assistant", "prompt": "one two", "stream": True, "max_tokens": 8}
        response = router.client.post("/v1/completions", json=body)
        if first.stats()["seen"]:
            break
    assert "error" not in response.text
    assert json.loads(second.stats()["requests"][-1]["body"])["prompt"] == "one twot0 t1 t2"
    assert last_record(router).completion_tokens == 8


def test_an_equivalent_version_may_go_on_and_another_may_not(router: RouterProcess, fake_engine: Start) -> None:
    cut, other = fake_engine("--cut-after-events", "3"), fake_engine()
    versions = [able("v1", [cut.port]), able("v2", [other.port])]
    weights = {"v1": 10_000, "v2": 0}
    router.publish(model(versions, weights, fallback=("v2",)))
    refused = router.chat(stream=True)
    assert chunks_of(refused)[-1]["error"]["code"] == "engine_reset"
    router.publish(model(versions, weights, equivalent=(("v1", "v2"),)))
    assert text_of(chunks_of(router.chat(stream=True, max_tokens=8))) == "".join(WORDS)
    first, second = router.records(2)
    assert (first.outcome, first.version) == ("truncated", "v1")
    assert (second.outcome, second.version, second.assigned) == ("completed", "v2", "v1")


def test_it_goes_on_as_often_as_attempts_are_allowed(router: RouterProcess, fake_engine: Start) -> None:
    engines = [fake_engine("--cut-after-events", "2") for _ in range(3)]
    router.publish(model([able("v1", [engine.port for engine in engines])], {"v1": 10_000}))
    response = router.chat(stream=True)
    chunks = chunks_of(response)
    said = text_of(chunks)
    assert "".join(WORDS).startswith(said)
    assert chunks[-1]["error"]
    record = router.records(1)[0]
    assert record.outcome == "truncated"
    assert 1 <= record.continuations <= 3
    assert record.completion_tokens == len(said.split())


def test_a_replica_that_rejects_the_prefill_does_not_hide_the_real_error(
    router: RouterProcess, fake_engine: Start
) -> None:
    first, second = cut_then_whole(router, fake_engine, "--cut-after-events", "3")
    second.behave(reject_prefill=True)
    while not first.stats()["seen"]:
        response = router.chat(stream=True)
    chunks = chunks_of(response)
    assert text_of(chunks) == "t0 t1 t2"
    assert chunks[-1]["error"]["code"] in ("engine_reset", "continuation_status_400")
    assert "prefill" not in chunks[-1]["error"]["message"]
    assert last_record(router).outcome == "truncated"


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
        {"n": 2},
    ],
)
def test_what_text_alone_cannot_continue_ends_in_band(router: RouterProcess, fake_engine: Start, extra: Json) -> None:
    first, second = cut_then_whole(router, fake_engine, "--cut-after-events", "3")
    second.kill()
    router.publish(model([able("v1", [first.port, fake_engine().port])], {"v1": 10_000}))
    while True:
        response = router.chat(stream=True, **extra)
        if first.stats()["seen"]:
            break
    assert chunks_of(response)[-1]["error"]["code"] == "engine_reset"


def test_a_client_that_leaves_while_another_replica_is_asked_cancels_it(
    router: RouterProcess, fake_engine: Start
) -> None:
    first, second = cut_then_whole(router, fake_engine, "--cut-after-events", "3")
    second.behave(gap_s=0.05, events=1000)
    asked = 0
    while not first.stats()["seen"]:
        asked += 1
        with router.client.stream("POST", "/v1/chat/completions", json=STREAM) as response:
            for line in response.iter_lines():
                if "t6" in line:
                    break
    record = last_record(router, asked)
    assert (record.outcome, record.continuations) == ("cancelled", 1)
    until(lambda: second.stats()["running"] == 0)
    assert second.stats()["requests"][-1]["outcome"] == "cancelled"
    assert router.control.stats().inflight == {}


# --- the pure part ---


def event(text: str | None, *, finish: str | None = None, head: str = "a", **extra: Any) -> bytes:
    delta: Json = {"role": "assistant", "content": None} if text is None else {"content": text} if text else {}
    value = {
        "id": head,
        "created": 1,
        "model": head,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return b"data: " + json.dumps(value | extra).encode() + b"\n\n"


def resumption(texts: Sequence[str], **body: Any) -> Resumption:
    partial = Partial()
    partial.add(event(None))
    for text in texts:
        partial.add(event(text))
    request = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True, **body}
    found = resume(json.dumps(request).encode(), CHAT, partial)
    assert found is not None
    return found


pieces = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(st.lists(pieces, min_size=1, max_size=30), st.data())
def test_wherever_it_is_cut_the_text_is_neither_doubled_nor_lost(texts: list[str], data: st.DataObject) -> None:
    """The next replica says again, as a model at temperature 0 would, all that comes after the prefill."""
    cut = data.draw(st.integers(1, len(texts)))
    said = "".join(texts[:cut])
    if not said.strip():
        return
    found = resumption(texts[:cut])
    rest = "".join(texts)[len(found.prefill) :]
    stream = b"".join([event(None, head="b"), *(event(c, head="b") for c in rest), event("", finish="stop", head="b")])
    sizes = data.draw(st.lists(st.integers(1, 200), max_size=20))
    out, at = b"", 0
    for size in [*sizes, len(stream)]:
        out += found.rewrite(stream[at : at + size])
        at += size
    chunks = [value for part in out.split(b"\n\n") if (value := payload_of(part))]
    assert said + text_of(chunks) == "".join(texts)
    assert {chunk["id"] for chunk in chunks} <= {"a"}
    assert not any("role" in choice["delta"] for chunk in chunks for choice in chunk["choices"])


def test_usage_adds_up() -> None:
    found = resumption(["one", " two", "\n"], max_tokens=10)
    assert found.prefill == "one two"
    found.counted(b'{"tokens": [5, 6]}')
    assert json.loads(found.body("m"))["max_tokens"] == 8
    usage = {"prompt_tokens": 12, "completion_tokens": 8, "total_tokens": 20}
    (chunk,) = chunks(found.rewrite(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"))
    assert chunk["usage"] == {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}


def chunks(data: bytes) -> list[Json]:
    return [value for part in data.split(b"\n\n") if (value := payload_of(part))]


def test_a_stream_cut_after_its_last_token_only_learns_how_it_ended() -> None:
    found = resumption(["one", " two"], max_tokens=2)
    assert json.loads(found.body("m"))["max_tokens"] == 1
    (chunk,) = chunks(found.rewrite(event(" three", head="b") + event("", finish="length", head="b")))
    assert (chunk["choices"][0]["delta"], chunk["choices"][0]["finish_reason"]) == ({}, "length")
    usage = {"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 13}
    (last,) = chunks(found.rewrite(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"))
    assert last["usage"] == {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}


def test_the_clients_own_prefill_goes_on() -> None:
    found = resumption([" there"], messages=[{"role": "assistant", "content": "Hello"}])
    assert json.loads(found.body("m"))["messages"] == [{"role": "assistant", "content": "Hello there"}]


def test_reasoning_and_tool_calls_are_not_continued() -> None:
    for delta in ({"reasoning_content": "hm"}, {"tool_calls": [{"index": 0}]}):
        partial = Partial()
        partial.add(event("so"))
        partial.add(b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n")
        assert resume(b'{"messages": [{"role": "user", "content": ""}]}', CHAT, partial) is None


def test_a_long_stream_is_kept_as_text_and_no_more() -> None:
    partial = Partial()
    padding = "x" * 500
    for number in range(1000):
        partial.add(event(f" {number}", padding=padding))
        assert sum(map(len, partial._raw)) < 33 * 1024
    assert partial.text == "".join(f" {number}" for number in range(1000))
    assert partial.events == 1000
