"""Degraded answers on a real worker: given only where no engine can answer, marked, and never somebody else's."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from engines.fixtures import FakeEngine
from router_harness import RouterProcess, model, until, version

from serving.router.protocol import Applied, Publish
from serving.router.table import Cache, Key, Model, Retry, Table, Version

Start = Callable[..., FakeEngine]
KEPT = Cache(bytes_max=1_000_000, ttl_s=60.0)
QUICK = Retry(backoff_s=0.01, backoff_max_s=0.02)


def served(*versions: Version, cache: Cache = KEPT, **options: Any) -> Model:
    return model(versions, {versions[0].label: 10_000}, retry=QUICK, cache=cache, **options)


def ask(router: RouterProcess, *, key: str = "", **body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return router.chat(**{"temperature": 0, "headers": headers} | body)


@pytest.mark.parametrize("stream", [False, True])
def test_the_same_request_gets_the_same_answer_once_no_engine_can_give_one(
    router: RouterProcess, fake_engine: Start, stream: bool
) -> None:
    engine = fake_engine()
    router.publish(served(version("v1", [engine.port])))
    first = ask(router, stream=stream)
    assert "x-modelyard-degraded" not in first.headers
    again = ask(router, stream=stream)
    assert ("x-modelyard-degraded" in again.headers, engine.stats()["seen"]) == (False, 2), "an engine that can, does"
    engine.kill()
    time.sleep(1.1)  # its age is told in whole seconds
    degraded = ask(router, stream=stream)
    assert (degraded.status_code, degraded.content) == (200, again.content)
    assert degraded.headers["x-modelyard-degraded"] == "cache"
    assert degraded.headers["x-modelyard-version"] == "assistant@v1"
    assert degraded.headers["content-type"] == again.headers["content-type"]
    assert int(degraded.headers["age"]) >= 1
    record = router.records(3)[2]
    assert (record.outcome, record.status, record.source, record.version) == ("completed", 200, "cache", "v1")
    assert (record.prompt_tokens, record.completion_tokens, record.usage_source) == (0, 0, "none")
    assert (record.response_bytes, record.dispatched_s) == (len(again.content), 0.0)
    other = ask(router, stream=stream, seed=1)
    assert (other.status_code, other.json()["error"]["code"]) == (502, "connect_refused"), "exact match, or nothing"
    assert not router.control.stats().inflight


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503},
        {"status": 429},
        {"status": 401},
        {"garbage": True},
        {"error_event_after_events": 0},
    ],
    ids=["503", "429", "401", "garbage", "error-event"],
)
def test_every_way_of_not_answering_counts(router: RouterProcess, fake_engine: Start, fault: dict[str, Any]) -> None:
    engine = fake_engine()
    router.publish(served(version("v1", [engine.port])))
    first = ask(router, stream=True)
    engine.behave(**fault)
    degraded = ask(router, stream=True)
    assert (degraded.status_code, degraded.headers.get("x-modelyard-degraded")) == (200, "cache")
    assert degraded.content == first.content


def test_where_no_replica_is_ready_too(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine()
    ready = version("v1", [engine.port])
    router.publish(served(ready))
    assert ask(router).status_code == 200
    router.publish(served(Version(label="v1")))
    degraded = ask(router)
    assert (degraded.status_code, degraded.headers["x-modelyard-attempts"]) == (200, "0")
    assert degraded.headers["x-modelyard-degraded"] == "cache"


def test_a_fallback_that_answers_comes_first(router: RouterProcess, fake_engine: Start) -> None:
    engine, spare = fake_engine(), fake_engine("--word", "spare")
    router.publish(served(version("v1", [engine.port]), version("v2", [spare.port]), fallback=("v2",)))
    assert ask(router).headers["x-modelyard-version"] == "assistant@v1"
    engine.kill()
    answer = ask(router)
    assert (answer.headers["x-modelyard-version"], answer.headers.get("x-modelyard-degraded")) == ("assistant@v2", None)
    spare.kill()
    degraded = ask(router)
    assert (degraded.headers["x-modelyard-version"], degraded.content) == ("assistant@v2", answer.content)


def test_only_whole_answers_at_temperature_zero_are_kept(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine()
    router.publish(served(version("v1", [engine.port])))
    bodies: list[dict[str, Any]] = [{"temperature": 0.1}, {"temperature": None}, {"n": 2}]
    for body in bodies:
        assert ask(router, **body).status_code == 200
    engine.behave(cut_after_events=3)
    assert "error" in ask(router, stream=True, seed=1).text
    engine.behave(cut_after_events=-1, status=400)
    assert ask(router, seed=2).status_code == 400
    engine.kill()
    for body in [*bodies, {"stream": True, "seed": 1}, {"seed": 2}]:
        assert ask(router, **body).status_code == 502


def test_an_answer_that_is_too_large_or_too_old_is_not_given(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--word", "x" * 3000)
    router.publish(served(version("v1", [engine.port]), cache=Cache(bytes_max=10_000, ttl_s=60.0)))
    assert ask(router).status_code == 200
    assert ask(router, max_tokens=1).status_code == 200
    engine.kill()
    assert ask(router).status_code == 502, "too large"
    assert ask(router, max_tokens=1).status_code == 200
    router.publish(served(version("v1", [engine.port]), cache=Cache(bytes_max=10_000, ttl_s=0.5)))
    until(lambda: ask(router, max_tokens=1).status_code == 502)  # too old


def test_what_a_version_said_that_has_no_traffic_any_more_is_not_said_again(
    router: RouterProcess, fake_engine: Start
) -> None:
    bad, good = fake_engine("--word", "bad"), fake_engine()
    versions = [version("v2", [bad.port]), version("v1", [good.port])]
    router.publish(served(*versions))
    assert "bad0" in ask(router).text
    good.kill()
    bad.kill()
    router.publish(served(*reversed(versions)))
    assert ask(router).status_code == 502, "rolled back"
    router.publish(served(*versions))
    assert "bad0" in ask(router).text


def test_nobody_gets_an_answer_that_was_made_for_another_key(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine()
    keys = tuple(
        Key(id=f"key_{name}", digest=hashlib.sha256(name.encode()).digest(), slot=slot)
        for slot, name in enumerate(("sk-one", "sk-two"))
    )
    one = served(version("v1", [engine.port]))
    router.generation += 1
    router.control.send(Publish(Table(generation=router.generation, models={"assistant": one}, keys=keys)))
    router.control.wait(Applied)
    assert ask(router, key="sk-one").status_code == 200
    engine.kill()
    assert ask(router, key="sk-two").status_code == 502
    assert ask(router, key="sk-one").headers["x-modelyard-degraded"] == "cache"


def test_off_is_off(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine()
    router.publish(served(version("v1", [engine.port]), cache=Cache()))
    assert ask(router).status_code == 200
    engine.kill()
    assert ask(router).status_code == 502


# --- content filters ---


@pytest.mark.parametrize("code", ["content_filter", "content_policy_violation"])
def test_a_filters_refusal_goes_through_untouched(router: RouterProcess, fake_engine: Start, code: str) -> None:
    """No second attempt, no fallback, no mark against the replica: another engine would be asked to say it anyway."""
    engine, spare = fake_engine("--status", "400", "--error-code", code, "--error-type", code), fake_engine()
    versions = (version("v1", [engine.port]), version("v2", [spare.port]))
    router.publish(served(*versions, fallback=("v2",), larger_context=("v2",)))
    direct = httpx.post(f"{engine.url}/v1/chat/completions", json={"messages": []}, trust_env=False)
    for stream in (False, True) * 3:
        answer = ask(router, stream=stream)
        assert (answer.status_code, answer.content) == (400, direct.content)
        assert answer.headers["x-modelyard-attempts"] == "1"
    assert (engine.stats()["seen"], spare.stats()["seen"]) == (7, 0)
    engine.behave(status=200)
    assert ask(router).headers["x-modelyard-version"] == "assistant@v1", "its breaker stayed closed"
    records = router.records(7)
    assert {(one.outcome, one.status, one.attempts) for one in records[:6]} == {("completed", 400, 1)}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_a_filter_ended_goes_through_untouched(
    router: RouterProcess, fake_engine: Start, stream: bool
) -> None:
    engine, spare = fake_engine("--finish-reason", "content_filter", "--events", "3"), fake_engine()
    versions = (version("v1", [engine.port]), version("v2", [spare.port]))
    router.publish(served(*versions, fallback=("v2",), equivalent=(("v1", "v2"),)))
    answer = ask(router, stream=stream)
    assert answer.status_code == 200
    assert '"content_filter"' in answer.text
    if stream:
        events = [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
        assert not any("error" in event for event in events)
        assert answer.text.endswith("data: [DONE]\n\n")
    (record,) = router.records(1)
    assert (record.outcome, record.finish_reason, record.attempts) == ("completed", "content_filter", 1)
    assert spare.stats()["seen"] == 0
