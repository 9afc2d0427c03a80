"""What becomes of a request whose engine fails before any content, on a real worker with engines that misbehave."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable

import httpx
import msgspec
import pytest
from engines.fixtures import FakeEngine
from router_harness import PATIENCE_S, RouterProcess, model, until, version

from serving.router.table import Retry, Timeouts

Start = Callable[..., FakeEngine]
ONLY_V1 = {"v1": 10_000}
QUICK = Retry(backoff_s=0.01, backoff_max_s=0.02)


def code_of(response: httpx.Response) -> str:
    return str(response.json()["error"]["code"])


def test_one_500_is_tried_once_more_on_the_same_replica(router: RouterProcess, fake_engine: Start) -> None:
    failing, other = fake_engine("--status", "500", "--status-times", "1"), fake_engine("--status", "500")
    other.behave(status=200)
    router.publish(model([version("v1", [failing.port])], ONLY_V1, retry=QUICK))
    response = router.chat()
    assert (response.status_code, response.headers["x-modelyard-attempts"]) == (200, "2")
    assert failing.stats()["seen"] == 2
    (record,) = router.records(1)
    assert (record.outcome, record.attempts, record.completion_tokens) == ("completed", 2, 8)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_an_unavailable_engine_is_waited_for_where_there_is_no_other(
    router: RouterProcess, fake_engine: Start, status: int
) -> None:
    engine = fake_engine("--status", str(status), "--status-times", "2")
    router.publish(model([version("v1", [engine.port])], ONLY_V1, retry=QUICK))
    response = router.chat()
    assert (response.status_code, response.headers["x-modelyard-attempts"]) == (200, "3")


def test_a_persistent_error_reaches_the_client_as_the_engine_said_it(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--status", "503", "--error-message", "loading the model")
    router.publish(model([version("v1", [engine.port])], ONLY_V1, retry=QUICK))
    response = router.chat()
    assert (response.status_code, response.json()["error"]["message"]) == (503, "loading the model")
    assert engine.stats()["seen"] == 3
    assert router.records(1)[0].outcome == "failed"


def test_a_short_retry_after_is_honoured(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--status", "429", "--status-times", "1", "--retry-after-s", "1")
    router.publish(model([version("v1", [engine.port])], ONLY_V1, retry=QUICK))
    assert router.chat().status_code == 200
    first, second = engine.stats()["requests"]
    assert second["at"] - first["at"] >= 1.0


def test_a_long_retry_after_is_the_clients_and_nobody_asks_before_it(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--status", "429", "--retry-after-s", "30")
    router.publish(model([version("v1", [engine.port])], ONLY_V1, retry=QUICK))
    began = time.monotonic()
    first = router.chat()
    assert (first.status_code, first.headers["retry-after"]) == (429, "30")
    second = router.chat()
    took_s = math.ceil(time.monotonic() - began)
    assert (second.status_code, code_of(second)) == (429, "engine_overloaded")
    assert 30 - took_s <= int(second.headers["retry-after"]) <= 30
    assert engine.stats()["seen"] == 1


def test_an_overloaded_replica_leaves_the_request_to_another_at_once(router: RouterProcess, fake_engine: Start) -> None:
    busy, free = fake_engine("--status", "429", "--retry-after-s", "30"), fake_engine()
    router.publish(model([version("v1", [busy.port, free.port])], ONLY_V1))
    assert {router.chat().status_code for _ in range(12)} == {200}
    assert busy.stats()["seen"] <= 1


def test_an_overloaded_version_falls_back_after_it_was_waited_for(router: RouterProcess, fake_engine: Start) -> None:
    busy, spare = fake_engine("--status", "429"), fake_engine()
    versions = [version("v1", [busy.port]), version("v2", [spare.port])]
    router.publish(model(versions, {"v1": 10_000, "v2": 0}, fallback=("v2",), retry=QUICK))
    response = router.chat()
    assert (response.status_code, response.headers["x-modelyard-version"]) == (200, "assistant@v2")
    assert busy.stats()["seen"] == QUICK.attempts_max


@pytest.mark.parametrize("status", [401, 403])
def test_an_engine_that_refuses_the_router_is_not_the_clients_fault(
    router: RouterProcess, fake_engine: Start, status: int
) -> None:
    engine = fake_engine("--status", str(status))
    router.serve(engine.port)
    response = router.chat()
    assert (response.status_code, code_of(response)) == (502, "engine_unauthorized")
    assert engine.stats()["seen"] == 1


def test_a_silent_replica_is_not_asked_again(router: RouterProcess, fake_engine: Start) -> None:
    silent = fake_engine("--first-byte-delay-s", "30")
    router.serve(silent.port, timeouts=Timeouts(first_byte_s=0.3))
    response = router.chat()
    assert (response.status_code, code_of(response)) == (504, "first_byte_timeout")
    until(lambda: silent.stats()["cancelled"] == 1)
    assert silent.stats()["seen"] == 1


def test_a_slow_first_token_fails_over(router: RouterProcess, fake_engine: Start) -> None:
    slow, good = fake_engine("--first-token-delay-s", "30"), fake_engine()
    versions = [version("v1", [slow.port]), version("v2", [good.port])]
    quick = Timeouts(first_token_s=1.5)
    router.publish(model(versions, {"v1": 10_000, "v2": 0}, fallback=("v2",), timeouts=quick))
    response = router.chat(stream=True)
    assert response.headers["x-modelyard-version"] == "assistant@v2"
    assert response.text.count('"content":') == 9  # the role chunk and eight tokens, of one engine only
    (record,) = router.records(1)
    assert (record.version, record.completion_tokens, record.outcome) == ("v2", 8, "completed")
    until(lambda: slow.stats()["cancelled"] == 1)


def test_an_error_event_before_content_fails_over(router: RouterProcess, fake_engine: Start) -> None:
    failing, good = fake_engine("--error-event-after-events", "0"), fake_engine()
    versions = [version("v1", [failing.port]), version("v2", [good.port])]
    router.publish(model(versions, {"v1": 10_000, "v2": 0}, fallback=("v2",), retry=QUICK))
    response = router.chat(stream=True)
    assert response.headers["x-modelyard-version"] == "assistant@v2"
    assert '"error"' not in response.text


def test_a_stream_that_is_over_but_does_not_end_is_ended_promptly(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--hang-at-end", "--usage", "last-chunk")
    router.serve(engine.port)
    began = time.monotonic()
    response = router.chat(stream=True)
    assert time.monotonic() - began < 20  # far below the 120 s between tokens
    assert response.text.rstrip().endswith("data: [DONE]")
    (record,) = router.records(1)
    assert (record.outcome, record.completion_tokens) == ("completed", 8)


def test_the_first_error_is_told_not_the_fallbacks(router: RouterProcess, fake_engine: Start) -> None:
    silent, dead = fake_engine("--first-byte-delay-s", "30"), fake_engine()
    dead.kill()
    versions = [version("v1", [silent.port]), version("v2", [dead.port])]
    quick = Timeouts(first_byte_s=0.3)
    router.publish(model(versions, {"v1": 10_000, "v2": 0}, fallback=("v2",), timeouts=quick, retry=QUICK))
    response = router.chat()
    assert (response.status_code, code_of(response)) == (504, "first_byte_timeout")


# --- larger context ---


def contexts(router: RouterProcess, small: FakeEngine, large: FakeEngine) -> None:
    versions = [version("v1", [small.port]), version("v2", [large.port])]
    router.publish(model(versions, {"v1": 10_000, "v2": 0}, larger_context=("v2",)))


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_too_long_for_its_version_goes_to_a_larger_one(
    router: RouterProcess, fake_engine: Start, stream: bool
) -> None:
    small, large = fake_engine("--context-tokens", "2"), fake_engine()
    contexts(router, small, large)
    response = router.chat(stream=stream)
    assert response.headers["x-modelyard-version"] == "assistant@v2"
    (record,) = router.records(1)
    assert (record.outcome, record.assigned, record.version, record.attempts) == ("completed", "v1", "v2", 2)
    assert router.chat(model="assistant@v1").status_code == 400  # a pinned version has no other


def test_where_the_larger_one_fails_too_the_first_answer_stands(router: RouterProcess, fake_engine: Start) -> None:
    small, large = fake_engine("--context-tokens", "2"), fake_engine("--status", "500")
    contexts(router, small, large)
    response = router.chat()
    assert (response.status_code, code_of(response)) == (400, "context_length_exceeded")
    assert response.headers["x-modelyard-version"] == "assistant@v1"


def test_other_bad_requests_are_not_tried_elsewhere(router: RouterProcess, fake_engine: Start) -> None:
    small = fake_engine("--status", "400", "--error-code", "content_filter")
    large = fake_engine()
    contexts(router, small, large)
    response = router.chat()
    assert (response.status_code, code_of(response)) == (400, "content_filter")
    assert large.stats()["seen"] == 0


# --- the budget ---


def test_retries_are_at_most_a_fifth_of_the_load_beside_the_reserve(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--status", "503")
    retry = msgspec.structs.replace(QUICK, budget=0.2)
    router.publish(model([version("v1", [engine.port])], ONLY_V1, retry=retry))
    requests = 200

    def ask(count: int) -> None:
        with httpx.Client(base_url=router.url, trust_env=False, timeout=PATIENCE_S) as client:
            for _ in range(count):
                client.post(
                    "/v1/chat/completions",
                    content=json.dumps({"model": "assistant", "messages": []}),
                    headers={"content-type": "application/json"},
                )

    began = time.monotonic()
    threads = [threading.Thread(target=ask, args=(requests // 4,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refilled = time.monotonic() - began
    assert engine.stats()["seen"] <= requests * 1.2 + 10 + refilled + 1
    assert len(router.records(requests)) == requests
