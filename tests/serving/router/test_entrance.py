"""Limits and queues before a real worker: who gets in, in which order, what others are told, and nobody is lost."""

from __future__ import annotations

import hashlib
import math
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from engines.fixtures import FakeEngine
from router_harness import PATIENCE_S, RouterProcess, model, standstill, until, version

from registry.usage import RequestRecord
from serving.router.protocol import Drain
from serving.router.table import Admission, Key, Model, Retry

Start = Callable[..., FakeEngine]
TOKENS = 3 + 8
"""What `router.chat` uses: the words of its message and the events of a fake engine's answer."""


def queueing(engine: FakeEngine, **bounds: Any) -> Model:
    admission = Admission(**{"inflight_max": 1, "queue_max": 100, "queue_timeout_s": 60.0} | bounds)
    return model([version("v1", [engine.port])], {"v1": 10_000}, admission=admission)


def secret(number: int = 1) -> str:
    return f"mya_{number}"


def key(number: int = 1, **limits: Any) -> Key:
    return Key(id=f"key_{number}", digest=hashlib.sha256(secret(number).encode()).digest(), slot=number, **limits)


def ask(router: RouterProcess, request_id: str = "", number: int = 0, **headers: str) -> httpx.Response:
    """One chat request on a connection of its own."""
    if request_id:
        headers["x-request-id"] = request_id
    if number:
        headers["authorization"] = f"Bearer {secret(number)}"
    body = {"model": "assistant", "messages": [{"role": "user", "content": "one two three"}]}
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{router.url}/v1/chat/completions", json=body, headers=headers, timeout=90, trust_env=False)


def waiting(router: RouterProcess) -> int:
    return sum(router.control.stats().waiting.get("assistant", ()))


def nothing_is_held(router: RouterProcess) -> bool:
    stats = router.control.stats()
    return not stats.waiting and not stats.inflight


def overlap(engine: FakeEngine) -> int:
    """The most requests that the engine worked on at a time."""
    requests = engine.stats()["requests"]
    edges = sorted([(one["at"], 1) for one in requests] + [(one["ended_at"], -1) for one in requests])
    running = most = 0
    for _, change in edges:
        running += change
        most = max(most, running)
    return most


def by_id(records: list[RequestRecord]) -> dict[str, RequestRecord]:
    return {record.request_id: record for record in records}


class Background:
    """Requests made at the same time as the test goes on."""

    def __init__(self, router: RouterProcess) -> None:
        self._router = router
        self._pool = ThreadPoolExecutor(64)
        self._futures: list[Future[httpx.Response]] = []

    def queue(self, request_id: str, **options: Any) -> None:
        """Ask, and wait until the request waits in the router."""
        before = waiting(self._router)
        self._futures.append(self._pool.submit(ask, self._router, request_id, **options))
        until(lambda: waiting(self._router) == before + 1)

    def ask(self, request_id: str, **options: Any) -> None:
        """Ask, and wait until the request is with an engine."""
        self._futures.append(self._pool.submit(ask, self._router, request_id, **options))
        until(lambda: sum(self._router.control.stats().inflight.values()) > 0)

    def burst(self, count: int, **options: Any) -> None:
        """Ask so many at once."""
        self._futures += [self._pool.submit(ask, self._router, **options) for _ in range(count)]

    def answered(self) -> int:
        return sum(future.done() for future in self._futures)

    def answers(self) -> list[httpx.Response]:
        return [future.result(PATIENCE_S) for future in self._futures]


def test_a_burst_fills_the_places_and_the_queue_and_the_rest_is_told_so(
    router: RouterProcess, fake_engine: Start
) -> None:
    engine = fake_engine("--first-byte-delay-s", "0.5")
    router.publish(queueing(engine, inflight_max=2, queue_max=3))
    background = Background(router)
    with standstill(engine):
        background.burst(12)
        until(lambda: background.answered() == 7 and waiting(router) == 3)
        time.sleep(0.5)
    answers = background.answers()
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 5 + [429] * 7
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "queue_full"
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.headers["x-modelyard-attempts"] == "0"
    assert overlap(engine) == 2
    records = router.records(12)
    done = [record for record in records if record.outcome == "completed"]
    waited = [record for record in done if record.queued_s > 0]
    assert len(waited) == 3
    assert all(2 * record.overhead_s < record.queued_s < record.duration_s for record in waited)
    assert all(record.queued_s > 0.5 for record in waited)
    assert all(record.dispatched_s >= record.queued_s for record in waited)
    assert {(record.outcome, record.error) for record in records} == {("completed", ""), ("rejected", "queue_full")}
    assert {record.priority for record in records} == {"interactive"}
    until(lambda: nothing_is_held(router))


def test_interactive_goes_before_batch_and_each_class_in_order(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine()
    router.publish(queueing(engine), keys=[key(1), key(2, priority="batch")])
    background = Background(router)
    with standstill(engine):
        background.ask("first", number=1)
        background.queue("batch-1", number=1, x_modelyard_priority="batch")
        background.queue("batch-2", number=2)
        background.queue("batch-3", number=2, x_modelyard_priority="interactive")
        background.queue("urgent-1", number=1)
        background.queue("urgent-2", number=1, x_modelyard_priority="interactive")
    assert {answer.status_code for answer in background.answers()} == {200}
    seen = [dict(one["headers"])["x-request-id"] for one in engine.stats()["requests"]]
    assert seen == ["first", "urgent-1", "urgent-2", "batch-1", "batch-2", "batch-3"]
    records = by_id(router.records(6))
    assert [records[one].priority for one in seen] == ["interactive"] * 3 + ["batch"] * 3


def test_flex_is_batch_and_a_class_that_does_not_exist_is_refused(router: RouterProcess, fake_engine: Start) -> None:
    router.publish(queueing(fake_engine()))
    assert router.chat(service_tier="flex").status_code == 200
    refused = router.chat(headers={"x-modelyard-priority": "shadow"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_priority")
    assert [record.priority for record in router.records(2)] == ["batch", ""]


def test_an_urgent_request_takes_a_batch_ones_place_in_a_full_queue(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine()
    router.publish(queueing(engine, queue_max=1))
    background = Background(router)
    with standstill(engine):
        background.ask("first")
        background.queue("batch", x_modelyard_priority="batch")
        background.burst(1, request_id="urgent")
        until(lambda: background.answered() == 1)
    assert [answer.status_code for answer in background.answers()] == [200, 429, 200]


def test_a_client_that_leaves_while_it_waits_is_gone_at_once(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine()
    router.publish(queueing(engine, queue_max=1), keys=[key(1, requests_per_minute=100, concurrency_max=2), key(2)])
    background = Background(router)
    body = b'{"model":"assistant","messages":[{"role":"user","content":"one"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nx-request-id: left\r\ncontent-length: %d\r\n"
    with standstill(engine):
        background.ask("first", number=2)
        with socket.create_connection(("127.0.0.1", router.port)) as client:
            client.sendall(head % len(body) + b"authorization: Bearer %b\r\n\r\n" % secret(1).encode() + body)
            until(lambda: waiting(router) == 1)
        until(lambda: waiting(router) == 0)  # the first one has not gone on, so there was no room for it
    assert ask(router, "next", number=1).headers["x-ratelimit-remaining-requests"] == "99"  # the other cost nothing
    record = by_id(router.records(3))["left"]
    assert (record.outcome, record.error, record.attempts, record.status) == ("cancelled", "client_closed", 0, 0)
    assert 0 < record.queued_s <= record.duration_s
    assert [answer.status_code for answer in background.answers()] == [200]
    assert engine.stats()["seen"] == 2
    until(lambda: nothing_is_held(router))


def test_who_waits_too_long_is_told_so(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine()
    router.publish(queueing(engine, queue_timeout_s=0.3))
    background = Background(router)
    with standstill(engine):
        background.ask("first")
        late = ask(router, "late")
    assert (late.status_code, late.json()["error"]["code"]) == (503, "queue_timeout")
    assert late.headers["retry-after"] == "1"
    record = by_id(router.records(1))["late"]
    assert (record.outcome, record.error, record.attempts) == ("rejected", "queue_timeout", 0)
    assert 0.3 <= record.queued_s <= record.duration_s
    assert [answer.status_code for answer in background.answers()] == [200]


def test_an_engine_that_dies_before_a_full_queue_takes_nobody_along(router: RouterProcess, fake_engine: Start) -> None:
    engine, spare = fake_engine("--first-byte-delay-s", "30"), fake_engine()
    versions = [version("v1", [engine.port]), version("v2", [spare.port])]
    bounds = Admission(inflight_max=2, queue_max=20)
    router.publish(model(versions, {"v1": 10_000, "v2": 0}, fallback=("v2",), admission=bounds))
    with ThreadPoolExecutor(22) as pool:
        futures = [pool.submit(ask, router) for _ in range(22)]
        until(lambda: waiting(router) == 20)
        engine.kill()
        answers = [future.result(PATIENCE_S) for future in futures]
    assert {answer.status_code for answer in answers} <= {200, 502, 503}
    assert sum(answer.status_code == 200 for answer in answers) > 0
    assert len(router.records(22)) == 22
    until(lambda: nothing_is_held(router))
    assert overlap(spare) <= 2
    assert router.chat().status_code == 200


def test_with_no_engine_left_a_full_queue_is_told_so_and_nothing_recurses(
    router: RouterProcess, fake_engine: Start
) -> None:
    engine = fake_engine("--first-byte-delay-s", "30")
    admission, retry = Admission(inflight_max=1, queue_max=60), Retry(attempts_max=1)
    router.publish(model([version("v1", [engine.port])], {"v1": 10_000}, admission=admission, retry=retry))
    with ThreadPoolExecutor(61) as pool:
        futures = [pool.submit(ask, router) for _ in range(61)]
        until(lambda: waiting(router) == 60)
        engine.kill()
        answers = [future.result(PATIENCE_S) for future in futures]
    assert {answer.status_code for answer in answers} <= {502, 503}
    assert all(answer.json()["error"]["code"] for answer in answers)
    assert len(router.records(61)) == 61
    until(lambda: nothing_is_held(router))


def test_a_drain_finishes_what_waits(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--first-byte-delay-s", "0.2")
    router.publish(queueing(engine, inflight_max=3))
    with ThreadPoolExecutor(9) as pool:
        with standstill(engine):
            futures = [pool.submit(ask, router) for _ in range(9)]
            until(lambda: waiting(router) == 6)
            router.process.terminate()
        answers = [future.result(PATIENCE_S) for future in futures]
    assert {answer.status_code for answer in answers} == {200}
    assert router.process.wait(PATIENCE_S) == 0
    assert {record.outcome for record in router.records(9)} == {"completed"}


def test_a_drains_deadline_tells_those_that_still_wait(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--first-byte-delay-s", "30")
    router.publish(queueing(engine))
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(ask, router) for _ in range(6)]
        until(lambda: waiting(router) == 5)
        router.control.send(Drain(deadline_s=0.3))
        answers = [future.result(PATIENCE_S) for future in futures]
    assert {(answer.status_code, answer.json()["error"]["code"]) for answer in answers} == {(503, "router_stopping")}
    assert router.process.wait(PATIENCE_S) == 0
    records = router.records(6)
    assert sorted(record.attempts for record in records) == [0] * 5 + [1]


def test_a_bound_that_is_lifted_lets_everybody_in_and_one_that_is_set_holds(
    router: RouterProcess, fake_engine: Start
) -> None:
    engine = fake_engine()
    router.publish(queueing(engine))
    background = Background(router)
    with standstill(engine):
        background.ask("first")
        for number in range(4):
            background.queue(f"next-{number}")
        router.publish(queueing(engine, inflight_max=0))
        until(lambda: sum(router.control.stats().inflight.values()) == 5)
    assert {answer.status_code for answer in background.answers()} == {200}
    router.publish(queueing(engine, inflight_max=1, queue_max=0))
    background = Background(router)
    with standstill(engine):
        background.burst(3)
        until(lambda: background.answered() == 2)
    assert sorted(answer.status_code for answer in background.answers()) == [200, 429, 429]


def test_a_keys_requests_are_counted_and_said(router: RouterProcess, fake_engine: Start) -> None:
    router.publish(queueing(fake_engine(), inflight_max=0), keys=[key(1, requests_per_minute=3), key(2)])
    began = time.monotonic()
    answers = [ask(router, number=1) for _ in range(4)]
    took_s = math.ceil(time.monotonic() - began)
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    assert answers[3].headers["x-ratelimit-limit-requests"] == "3"
    assert 20 - took_s <= int(answers[3].headers["retry-after"]) <= 20
    assert answers[3].json()["error"]["code"] == "rate_limit_exceeded"
    assert answers[3].json()["error"]["type"] == "rate_limit_error"
    free = ask(router, number=2)
    assert free.status_code == 200
    assert not [name for name in free.headers if name.startswith("x-ratelimit")]
    refused = [record for record in router.records(5) if record.outcome == "rejected"]
    assert [(record.error, record.status, record.key_id) for record in refused] == [
        ("rate_limit_exceeded", 429, "key_1")
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_keys_tokens_are_the_engines_own_in_the_end(router: RouterProcess, fake_engine: Start, stream: bool) -> None:
    engine = fake_engine()
    router.publish(queueing(engine, inflight_max=0), keys=[key(1, tokens_per_minute=60_000), key(2)])
    headers = {"authorization": f"Bearer {secret()}"}
    start = time.monotonic()
    for _ in range(5):
        answer = router.chat(stream=stream, headers=headers, max_tokens=5000)
        charged = 60_000 - int(answer.headers["x-ratelimit-remaining-tokens"])
        assert 5000 < charged < 5100  # its own estimate, and what the ones before it really used (or is filled again)
    assert answer.headers["x-ratelimit-limit-tokens"] == "60000"
    engine.behave(status=400)
    router.chat(headers=headers)
    probe = router.chat(headers=headers)
    filled = (time.monotonic() - start) * 1000
    used = 60_000 - int(probe.headers["x-ratelimit-remaining-tokens"]) - len(probe.request.content) // 4
    assert 5 * TOKENS - filled - 2 <= used <= 5 * TOKENS


def test_a_token_limit_waits_until_what_was_used_is_filled_again(router: RouterProcess, fake_engine: Start) -> None:
    router.publish(queueing(fake_engine("--events", "100"), inflight_max=0), keys=[key(1, tokens_per_minute=60)])
    headers = {"authorization": f"Bearer {secret()}"}
    assert router.chat(headers=headers).status_code == 200  # 103 tokens, which nobody could know
    refused = router.chat(headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "tokens per minute" in refused.json()["error"]["message"]
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    assert 43 <= int(refused.headers["retry-after"]) <= 43 + 30  # the debt of 43, and the next one's estimate


def test_a_keys_concurrency(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine()
    router.publish(queueing(engine, inflight_max=0), keys=[key(1, concurrency_max=2)])
    background = Background(router)
    with standstill(engine):
        background.burst(6, number=1)
        until(lambda: background.answered() == 4)
    assert sorted(answer.status_code for answer in background.answers()) == [200] * 2 + [429] * 4
    assert ask(router, number=1).status_code == 200


def test_a_budget_ends(router: RouterProcess, fake_engine: Start) -> None:
    router.publish(queueing(fake_engine(), inflight_max=0), keys=[key(1, budget_tokens=5 * TOKENS)])
    answers = []
    while (answer := ask(router, number=1)).status_code == 200:
        answers.append(answer)
    assert 2 <= len(answers) <= 5  # the estimate of the next one must fit too
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")
    assert int(answer.headers["retry-after"]) > 0


def test_a_client_that_leaves_early_pays_for_what_it_was_given(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--events", "200", "--gap-s", "0.02")
    router.publish(queueing(engine, inflight_max=0), keys=[key(1, tokens_per_minute=1000)])
    headers = {"authorization": f"Bearer {secret()}"}
    body = {"model": "assistant", "messages": [{"role": "user", "content": "one"}], "stream": True, "max_tokens": 500}
    began = time.monotonic()
    with router.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        for number, _ in enumerate(answer.iter_lines()):
            if number > 30:
                break
    record = router.records(1)[0]
    assert record.outcome == "cancelled"
    engine.behave(events=1)
    probe = router.chat(headers=headers)
    used = 1000 - int(probe.headers["x-ratelimit-remaining-tokens"]) - len(probe.request.content) // 4
    filled = (time.monotonic() - began) * 1000 / 60
    assert record.completion_tokens - filled - 1 <= used <= record.completion_tokens + record.request_bytes // 4


def test_what_nothing_limits_pays_nothing(router: RouterProcess, fake_engine: Start) -> None:
    router.serve(fake_engine().port)
    answer = router.chat(headers={"x-modelyard-priority": "anything"})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
    assert (router.records(1)[0].priority, router.records(1)[0].queued_s) == ("", 0.0)


def test_waiting_requests_are_counted_by_class(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine()
    router.publish(queueing(engine))
    background = Background(router)
    with standstill(engine):
        background.ask("first")
        background.queue("one")
        background.queue("two", x_modelyard_priority="batch")
        background.queue("three", x_modelyard_priority="batch")
        assert router.control.stats().waiting == {"assistant": (1, 2, 0)}
    assert len(background.answers()) == 4
    until(lambda: nothing_is_held(router))
