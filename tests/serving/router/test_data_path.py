"""The data path against fake engines: forwarding, accounting, failover, cancelling, errors. Every part is a process."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import socket
import time
from collections.abc import Callable

import httpx
import msgspec
import pytest
from engines.fixtures import FakeEngine
from router_harness import PATIENCE_S, RouterProcess, model, until, version

from serving.router.table import Limits, Timeouts

Start = Callable[..., FakeEngine]
STREAM = {"model": "assistant", "messages": [], "stream": True}


def events_of(response: httpx.Response) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def text_of(response: httpx.Response) -> str:
    return "".join(
        choice["delta"].get("content") or "" for event in events_of(response) for choice in event.get("choices", [])
    )


def test_whole_answer_passes_through_and_is_accounted(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--events", "5")
    generation = router.serve(engine.port)
    response = router.chat(headers={"x-request-id": "mine-1", "authorization": "Bearer secret", "cookie": "a=b"})
    assert response.status_code == 200
    assert response.json()["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert response.headers["x-request-id"] == "mine-1"
    assert response.headers["x-modelyard-version"] == "assistant@v1"
    assert response.headers["x-modelyard-attempts"] == "1"
    assert response.headers["x-modelyard-generation"] == str(generation)
    (record,) = router.records(1)
    assert (record.outcome, record.status, record.version, record.endpoint) == (
        "completed",
        200,
        "v1",
        "/v1/chat/completions",
    )
    assert (record.prompt_tokens, record.completion_tokens, record.usage_source) == (3, 5, "engine")
    assert (record.request_id, record.finish_reason, record.attempts) == ("mine-1", "stop", 1)
    seen = dict(engine.stats()["requests"][0]["headers"])
    assert "authorization" not in seen
    assert "cookie" not in seen
    assert seen["x-request-id"] == "mine-1"


@pytest.mark.parametrize("asked", [True, False, None])
def test_streamed_usage_is_the_engines_own_and_shown_only_where_asked(
    router: RouterProcess, fake_engine: Start, asked: bool | None
) -> None:
    engine = fake_engine("--events", "7")
    router.serve(engine.port)
    options = {} if asked is None else {"stream_options": {"include_usage": asked}}
    response = router.chat(stream=True, **options)
    assert text_of(response) == "t0 t1 t2 t3 t4 t5 t6"
    assert response.text.endswith("data: [DONE]\n\n")
    shown = [event for event in events_of(response) if event.get("usage")]
    assert len(shown) == (1 if asked else 0)
    assert not [event for event in events_of(response) if not event["choices"]] or asked
    (record,) = router.records(1)
    assert (record.prompt_tokens, record.completion_tokens, record.usage_source) == (3, 7, "engine")
    assert (record.events, record.finish_reason, record.streamed) == (7, "stop", True)
    assert 0 < record.first_token_s <= record.last_token_s <= record.duration_s


@pytest.mark.parametrize("size", [1, 3, 17, 100])
def test_events_cut_anywhere_arrive_whole(router: RouterProcess, fake_engine: Start, size: int) -> None:
    engine = fake_engine("--events", "6", "--split-bytes", str(size))
    router.serve(engine.port)
    response = router.chat(stream=True)
    assert text_of(response) == "t0 t1 t2 t3 t4 t5"
    assert not [event for event in events_of(response) if event.get("usage")]
    assert router.records(1)[0].completion_tokens == 6


def test_the_body_reaches_the_engine_byte_for_byte(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine()
    router.serve(engine.port)
    body = b'{ "x-unknown" : 1e400, "model":"assistant" ,"messages":[{"role":"user","content":"\\u00e9 \xc3\xa9"}]}'
    response = router.client.post("/v1/chat/completions", content=body)
    assert response.status_code == 200
    assert engine.stats()["requests"][0]["body"].encode() == body


def test_the_model_name_is_rewritten_only_for_engines_that_need_it(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine()
    router.publish(
        model(
            [version("v1", [engine.port], names=("assistant@v1", "assistant"))],
            {"v1": 10_000},
            aliases={"champion": "v1"},
        )
    )
    for name in ("assistant", "assistant@v1", "assistant@champion"):
        assert router.chat(model=name).status_code == 200
    assert [r["model"] for r in engine.stats()["requests"]] == ["assistant", "assistant@v1", "assistant@v1"]
    assert [r.pinned for r in router.records(3)] == [False, True, True]


def test_sessions_stick_and_pins_override(router: RouterProcess, fake_engine: Start) -> None:
    one, two = fake_engine(), fake_engine()
    versions = [version("v1", [one.port]), version("v2", [two.port])]
    router.publish(model(versions, {"v1": 5000, "v2": 5000}))
    answered = {}
    for session in range(40):
        headers = {"x-session-id": f"s{session}"}
        first, again = (router.chat(headers=headers).headers["x-modelyard-version"] for _ in range(2))
        assert first == again
        assert router.chat(user=f"s{session}").headers["x-modelyard-version"] == first
        answered[session] = first
    assert set(answered.values()) == {"assistant@v1", "assistant@v2"}
    assert router.chat(model="assistant@v2").headers["x-modelyard-version"] == "assistant@v2"
    router.publish(model(versions, {"v1": 2500, "v2": 7500}))
    for session, before in answered.items():
        after = router.chat(headers={"x-session-id": f"s{session}"}).headers["x-modelyard-version"]
        assert after == before or (before, after) == ("assistant@v1", "assistant@v2")


def test_a_dead_engine_fails_over_before_the_first_token(router: RouterProcess, fake_engine: Start) -> None:
    dead, alive = fake_engine(), fake_engine()
    dead.kill()
    versions = [version("v1", [alive.port]), version("v2", [dead.port])]
    router.publish(model(versions, {"v1": 0, "v2": 10_000}, fallback=("v1",)))
    response = router.chat(stream=True)
    assert text_of(response).startswith("t0 t1")
    assert response.headers["x-modelyard-version"] == "assistant@v1"
    assert response.headers["x-modelyard-attempts"] == "2"
    (record,) = router.records(1)
    assert (record.assigned, record.version, record.attempts, record.outcome) == ("v2", "v1", 2, "completed")
    pinned = router.chat(model="assistant@v2")
    assert pinned.status_code == 502
    assert pinned.json()["error"]["code"] == "connect_refused"


@pytest.mark.parametrize("status", [500, 502, 503])
def test_an_engine_error_before_content_fails_over(router: RouterProcess, fake_engine: Start, status: int) -> None:
    bad, good = fake_engine("--status", str(status)), fake_engine()
    versions = [version("v1", [bad.port]), version("v2", [good.port])]
    router.publish(model(versions, {"v1": 10_000, "v2": 0}, fallback=("v2",)))
    assert router.chat().headers["x-modelyard-version"] == "assistant@v2"
    router.publish(model(versions, {"v1": 10_000, "v2": 0}))
    assert router.chat().status_code == status  # nothing to fail over to: the engine's own answer
    assert [r.outcome for r in router.records(2)] == ["completed", "failed"]


def test_a_client_error_is_passed_on_and_never_retried(router: RouterProcess, fake_engine: Start) -> None:
    engine, other = fake_engine("--status", "400"), fake_engine()
    versions = [version("v1", [engine.port]), version("v2", [other.port])]
    router.publish(model(versions, {"v1": 10_000, "v2": 0}, fallback=("v2",)))
    response = router.chat()
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "the fake engine was told to fail"
    assert other.stats()["seen"] == 0
    assert router.records(1)[0].outcome == "completed"


def test_a_cut_stream_ends_with_an_error_event(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--cut-after-events", "3")
    router.serve(engine.port)
    response = router.chat(stream=True)
    assert text_of(response) == "t0 t1 t2"
    assert events_of(response)[-1]["error"]["type"] == "server_error"
    assert "[DONE]" not in response.text
    (record,) = router.records(1)
    assert (record.outcome, record.completion_tokens, record.usage_source) == ("truncated", 3, "counted")


def test_a_connection_goes_on_after_a_stream_that_was_cut(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--cut-after-events", "3")
    router.serve(engine.port)
    address = httpx.URL(router.url)
    connection = http.client.HTTPConnection(address.host, address.port or 80, timeout=20)
    body = json.dumps({"model": "assistant", "messages": [{"role": "user", "content": "a"}], "stream": True})
    with contextlib.closing(connection):
        for _ in range(3):  # nothing told the client that the connection would close
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            assert b'"error"' in answer.read()
            assert answer.getheader("connection") is None
            time.sleep(0.1)


def test_an_engine_that_dies_in_a_stream_is_reported_and_the_stream_ends_in_band(
    router: RouterProcess, fake_engine: Start
) -> None:
    engine = fake_engine("--die-after-events", "2")
    router.serve(engine.port)
    response = router.chat(stream=True)
    assert events_of(response)[-1]["error"]["code"] == "engine_reset"
    router.control.stats()
    assert router.records(1)[0].outcome == "truncated"


def test_a_stale_connection_is_replaced_without_an_attempt(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--close-after-s", "0.2")
    router.serve(engine.port)
    for _ in range(4):
        response = router.chat()
        assert response.status_code == 200
        assert response.headers["x-modelyard-attempts"] == "1"
        time.sleep(0.22)


def test_connections_to_engines_are_kept(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--events", "2")
    router.serve(engine.port)
    before = engine.stats()["connections_total"]
    for stream in (True, False) * 5:
        assert router.chat(stream=stream).status_code == 200
    assert engine.stats()["connections_total"] - before <= 2  # one of the router's, one for these statistics


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels(router: RouterProcess, fake_engine: Start, stream: bool) -> None:
    """At once: nothing more would ever come from this engine, or be due, that could tell the router of it."""
    engine = fake_engine("--events", "200", "--stall-after-events", "7")
    router.serve(engine.port)
    body = json.dumps(
        {"model": "assistant", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    ).encode()
    client = socket.create_connection(("127.0.0.1", router.port))
    client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    until(lambda: [one["events_sent"] for one in engine.stats()["requests"]] == [7])
    client.settimeout(PATIENCE_S)
    received = b""
    while stream and b"t6" not in received:
        received += client.recv(65536)
    client.close()
    (record,) = router.records(1)
    assert record.outcome == "cancelled"
    assert not stream or (record.usage_source, record.completion_tokens) == ("counted", 7)
    until(lambda: not engine.stats()["running"])
    (seen,) = engine.stats()["requests"]
    assert (seen["outcome"], seen["events_sent"]) == ("cancelled", 7)
    stats = router.control.stats()
    assert stats.inflight == {}


def test_a_client_that_hangs_up_at_done_had_its_whole_answer(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--events", "4", "--split-bytes", "7")
    router.serve(engine.port)
    for _ in range(30):
        with router.client.stream("POST", "/v1/chat/completions", json=STREAM) as response:
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    break
    assert {(r.outcome, r.completion_tokens) for r in router.records(30)} == {("completed", 4)}


def test_a_silent_engine_is_left_at_its_deadline(router: RouterProcess, fake_engine: Start) -> None:
    silent, good = fake_engine("--first-byte-delay-s", "30"), fake_engine()
    versions = [version("v1", [silent.port]), version("v2", [good.port])]
    quick = Timeouts(first_byte_s=1.5)
    router.publish(model(versions, {"v1": 10_000, "v2": 0}, fallback=("v2",), timeouts=quick))
    assert router.chat().headers["x-modelyard-version"] == "assistant@v2"
    router.publish(model(versions, {"v1": 10_000, "v2": 0}, timeouts=quick))
    response = router.chat()
    assert (response.status_code, response.json()["error"]["code"]) == (504, "first_byte_timeout")


def test_a_stalled_stream_is_ended_in_band(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--stall-after-events", "2")
    router.serve(engine.port, timeouts=Timeouts(between_tokens_s=1.0))
    response = router.chat(stream=True)
    assert events_of(response)[-1]["error"]["code"] == "between_tokens_timeout"
    assert router.records(1)[0].outcome == "truncated"
    until(lambda: engine.stats()["cancelled"] == 1)


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, "invalid_json", None),
        (b"\xff\xfe", 400, "invalid_json", None),
        (b"[]", 400, "invalid_type", None),
        (b"{}", 400, "missing_model", "model"),
        (b'{"model": 3}', 400, "invalid_type", "model"),
        (b'{"model": "assistant", "stream": "yes"}', 400, "invalid_type", "stream"),
        (b'{"model": "nobody"}', 404, "model_not_found", "model"),
        (b'{"model": "assistant@v9"}', 404, "model_not_found", "model"),
        (b"[" * 100_000, 400, "invalid_type", None),
        (b'{"a":' * 100_000, 400, "invalid_json", None),
    ],
)
def test_bad_bodies_get_the_openai_envelope(
    router: RouterProcess, fake_engine: Start, body: bytes, status: int, code: str, param: str | None
) -> None:
    router.serve(fake_engine().port)
    response = router.client.post("/v1/chat/completions", content=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"]
    assert error["type"] in ("invalid_request_error", "not_found_error")
    (record,) = router.records(1)
    assert (record.outcome, record.error, record.status) == ("rejected", code, status)
    assert router.chat().status_code == 200  # the connection, and the worker, go on


def test_oversized_bodies_and_heads_are_refused(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine()
    router.serve(engine.port, limits=Limits(body_bytes_max=4096, head_bytes_max=2048))
    assert router.client.post("/v1/chat/completions", content=b"x" * 5000).status_code == 413
    pieces = iter([b"x" * 1000] * 9)
    assert router.client.post("/v1/chat/completions", content=pieces).status_code == 413
    assert router.client.get("/v1/models", headers={"x-large": "y" * 70_000}).status_code == 431
    assert [r.error for r in router.records(3)] == ["request_too_large", "request_too_large", "request_head_too_large"]
    assert engine.stats()["seen"] == 0


def test_unknown_paths_and_methods(router: RouterProcess, fake_engine: Start) -> None:
    router.serve(fake_engine().port)
    assert router.client.get("/nothing").status_code == 404
    assert router.client.get("/v1/chat/completions").status_code == 405
    assert router.client.post("/v1/models").status_code == 405
    assert router.client.get("/v1/models/nobody").json()["error"]["code"] == "model_not_found"


def test_models_and_health(router: RouterProcess, fake_engine: Start) -> None:
    with pytest.raises(httpx.ConnectError):  # bound, but it does not listen before it can route
        router.client.get("/health/live")
    router.serve(fake_engine().port)
    assert router.client.get("/health/live").status_code == 200
    ready = router.client.get("/health/ready").json()
    assert (ready["status"], ready["generation"], ready["not_ready"]) == ("ready", 1, [])
    listed = router.client.get("/v1/models").json()
    assert [card["id"] for card in listed["data"]] == ["assistant", "assistant@v1"]
    assert router.client.get("/v1/models/assistant@v1").json()["object"] == "model"
    assert router.client.head("/health/live").status_code == 200
    router.publish(model([version("v1", [])], {"v1": 10_000}))
    assert router.client.get("/health/ready").status_code == 503
    assert router.chat().json()["error"]["code"] == "no_ready_engine"


def test_models_tell_their_window_where_their_engines_do(router: RouterProcess, fake_engine: Start) -> None:
    port = fake_engine().port
    told = msgspec.structs.replace(version("v1", [port]), context_tokens=4096)

    def windows() -> dict[str, int | None]:
        return {card["id"]: card.get("max_model_len") for card in router.client.get("/v1/models").json()["data"]}

    router.publish(model([told, version("v2", [port])], {"v1": 10_000}))
    assert windows() == {"assistant": None, "assistant@v1": 4096, "assistant@v2": None}
    larger = msgspec.structs.replace(version("v2", [port]), context_tokens=8192)
    router.publish(model([told, larger], {"v1": 10_000}))
    assert windows() == {"assistant": 4096, "assistant@v1": 4096, "assistant@v2": 8192}


def test_a_worker_drains_on_sigterm(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--events", "60", "--gap-s", "0.05")
    router.serve(engine.port)

    def refuses() -> bool:
        with contextlib.closing(socket.socket()) as client:
            return client.connect_ex(("127.0.0.1", router.port)) == errno.ECONNREFUSED

    with router.client.stream(
        "POST", "/v1/chat/completions", json={"model": "assistant", "messages": [], "stream": True}
    ) as response:
        lines = response.iter_lines()
        next(lines)
        router.process.terminate()
        until(refuses)
        text = "\n".join(lines)
    assert "[DONE]" in text
    assert router.process.wait(PATIENCE_S) == 0
    assert router.records(1)[0].outcome == "completed"


def test_pipelined_requests_are_answered_in_order(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--gap-s", "0.01")
    router.serve(engine.port)
    raw = b""
    for n in (3, 2, 1):
        body = b'{"model":"assistant","messages":[],"max_tokens":%d}' % n
        raw += (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-request-id: n%d\r\ncontent-length: %d\r\n\r\n"
            % (n, len(body))
            + body
        )
    raw += b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", router.port)) as client:
        client.sendall(raw)
        received = b""
        while data := client.recv(65536):
            received += data
    assert [received.index(b"x-request-id: n%d" % n) for n in (3, 2, 1)] == sorted(
        received.index(b"x-request-id: n%d" % n) for n in (3, 2, 1)
    )
    assert received.count(b"HTTP/1.1 200") == 4


def test_a_slow_reader_costs_bounded_memory(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--events", "3000", "--word", "w" * 20_000)
    router.serve(engine.port)
    before = router.control.stats().resident_bytes
    body = b'{"model":"assistant","messages":[],"stream":true}'
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", router.port))
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )

        def sent_so_far() -> int:
            return sum(one["events_sent"] for one in engine.stats()["requests"])

        sent = until(sent_so_far)
        while (later := sent_so_far()) != sent:  # until the engine is held up
            sent = later
            time.sleep(1.0)
        stats = router.control.stats()
        assert sent < 1500, "the engine was not slowed down"
        assert stats.resident_bytes - before < 8 * 1024 * 1024
    assert router.records(1)[0].outcome == "cancelled"
