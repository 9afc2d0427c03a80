"""Engines that speak HTTP as nobody should: what they send beyond a proper answer reaches no client.

Every engine here is a real process that answers byte for byte as the test says.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable

import httpx
import pytest
from engines.fixtures import FakeEngine
from router_harness import RouterProcess, until
from test_http_hygiene import BODY, POST, SIZED, STATUS, exchange

from serving.router.table import Timeouts

Start = Callable[..., FakeEngine]
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
ANSWER = b'{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":5}}'
SIZE = b"content-length: %d\r\n" % len(ANSWER)
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%b\r\n" % (len(ANSWER), ANSWER)
SECOND = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nx-request-id: evil\r\n\r\nSECRET"
STREAM = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'

REFUSED = {
    "two lengths": OK + SIZE + b"content-length: 3\r\n\r\n" + ANSWER,
    "one length twice": OK + SIZE + SIZE + b"\r\n" + ANSWER,
    "length and chunks": OK + SIZE + b"transfer-encoding: chunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "chunks and length": OK + b"transfer-encoding: chunked\r\n" + SIZE + b"\r\n" + CHUNK + b"0\r\n\r\n",
    "a coding that nobody asked for": OK + b"transfer-encoding: gzip\r\n\r\n" + ANSWER,
    "chunked is not last": OK + b"transfer-encoding: chunked, identity\r\n\r\n" + ANSWER,
    "a negative length": OK + b"content-length: -1\r\n\r\n" + ANSWER,
    "a bare return in a value": OK + b"x: a\rset-cookie: b\r\n" + SIZE + b"\r\n" + ANSWER,
    "a zero byte in a value": OK + b"content-type: a\0b\r\n" + SIZE + b"\r\n" + ANSWER,
    "a zero byte in a name": OK + b"a\0: b\r\n" + SIZE + b"\r\n" + ANSWER,
    "a folded header": OK + b"a: b\r\n c\r\n" + SIZE + b"\r\n" + ANSWER,
    "bare line feeds": b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok",
    "status 99": b"HTTP/1.1 099 X\r\n" + SIZE + b"\r\n" + ANSWER,
    "status 999": b"HTTP/1.1 999 X\r\n" + SIZE + b"\r\n" + ANSWER,
    "status 1000": b"HTTP/1.1 1000 X\r\n" + SIZE + b"\r\n" + ANSWER,
    "another protocol accepted": b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    + OK
    + SIZE
    + b"\r\n"
    + ANSWER,
    "a head of 300 kB": OK + b"x: %b\r\n" % (b"y" * 300_000) + SIZE + b"\r\n" + ANSWER,
    "300 kB of headers": OK + b"x: y\r\n" * 50_000 + SIZE + b"\r\n" + ANSWER,
    "a flood of 100 Continue": b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000 + OK + SIZE + b"\r\n" + ANSWER,
    "an endless status line": b"HTTP/1.1 200 " + b"O" * 300_000,
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a chunk size with a sign": CHUNKED + b"-5\r\n",
}
PASSED = {
    "extensions and trailers": CHUNKED + b"%x;a=b\r\n%b\r\n" % (len(ANSWER), ANSWER) + b"0;c\r\nx-secret: t\r\n\r\n",
    "some 1xx first": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\nlink: a\r\n\r\n" + OK + SIZE + b"\r\n" + ANSWER,
    "HTTP/1.0 with a length": OK.replace(b"1.1", b"1.0") + SIZE + b"\r\n" + ANSWER,
    "more than its length": OK + SIZE + b"\r\n" + ANSWER + b"SECRET",
    "a second answer": OK + SIZE + b"\r\n" + ANSWER + SECOND,
    "a second answer after chunks": CHUNKED + CHUNK + b"0\r\n\r\n" + SECOND,
    "half a second answer": OK + SIZE + b"\r\n" + ANSWER + b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\nx: SECR",
    "more after its last": OK + b"connection: close\r\n" + SIZE + b"\r\n" + ANSWER + b"SECRET",
    "a chunk after the last": CHUNKED + CHUNK + b"0\r\n\r\n6\r\nSECRET\r\n0\r\n\r\n",
}


@pytest.fixture
def ready(router: RouterProcess, fake_engine: Start) -> tuple[RouterProcess, FakeEngine]:
    engine = fake_engine("--events", "2")
    router.serve(engine.port, timeouts=Timeouts(first_byte_s=20, between_tokens_s=20))
    return router, engine


def test_an_answer_that_two_readers_could_read_differently_is_none(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine()
    for count, (name, raw) in enumerate(REFUSED.items(), start=1):
        router.publish()  # forgets what the breaker has learnt of the replica
        time.sleep(0.15)
        router.serve(engine.port)
        engine.behave(raw=raw.hex())
        received, _ = exchange(router, SIZED + b"connection: close\r\n\r\n" + BODY)
        assert STATUS.findall(received) == [b"502"], (name, received[:500])
        assert b"malformed_answer" in received, name
        assert b"SECRET" not in received
        record = router.records(count)[-1]
        assert (record.outcome, record.status, record.error) == ("failed", 502, "malformed_answer"), name
    assert router.control.stats().upstream_connections == 0
    assert router.control.stats().inflight == {}


def test_nothing_beyond_an_answer_reaches_a_client_or_the_next_request(ready: tuple[RouterProcess, FakeEngine]) -> None:
    router, engine = ready
    for name, raw in PASSED.items():
        engine.behave(raw=raw.hex())
        for _ in range(2):
            response = router.chat()
            assert response.status_code == 200, name
            assert response.content == ANSWER, name
            assert response.headers["x-request-id"] != "evil"
            assert "x-secret" not in response.headers
            assert "link" not in response.headers
        engine.behave(raw="")
        assert router.chat().json()["usage"]["completion_tokens"] == 2, name
    records = router.records(3 * len(PASSED))
    assert {(record.outcome, record.attempts) for record in records} == {("completed", 1)}
    assert router.control.stats().inflight == {}


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("kind", [b"application/json", b"text/event-stream"])
def test_an_answer_without_a_body_has_none_for_the_client_either(
    ready: tuple[RouterProcess, FakeEngine], status: int, kind: bytes
) -> None:
    router, engine = ready
    head = b"HTTP/1.1 %d X\r\ncontent-type: %b\r\ncontent-length: 6\r\n\r\n" % (status, kind)
    engine.behave(raw=(head + b"SECRET").hex())
    health = b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    received, _ = exchange(router, SIZED + b"\r\n" + BODY + health)
    assert STATUS.findall(received) == [b"%d" % status, b"200"]
    first = received.partition(b"\r\n\r\n")
    assert first[2].startswith(b"HTTP/1.1 200")  # the client's parser finds the next answer where this one ends
    assert b"transfer-encoding" not in first[0]
    assert b"content-length" not in first[0]
    assert b"SECRET" not in received
    assert router.records(1)[0].status == status


def test_an_answer_that_ends_with_its_connection_is_whole_or_broken_off(
    ready: tuple[RouterProcess, FakeEngine],
) -> None:
    router, engine = ready
    engine.behave(raw=(OK.replace(b"1.1", b"1.0") + b"\r\n" + ANSWER).hex(), raw_close=True)
    assert router.chat().content == ANSWER
    for cut in (OK + SIZE + b"\r\n" + ANSWER[:20], CHUNKED + b"%x\r\n" % len(ANSWER) + ANSWER[:20], CHUNKED + CHUNK):
        engine.behave(raw=cut.hex(), raw_close=True)
        with pytest.raises(httpx.RemoteProtocolError):
            router.chat()
    engine.behave(raw=(OK.replace(b"application/json", b"text/event-stream") + b"\r\n" + STREAM).hex(), raw_close=True)
    assert "stream_truncated" in router.chat(stream=True).text
    outcomes = [(record.outcome, record.error) for record in router.records(5)]
    assert outcomes == [("completed", ""), *[("truncated", "engine_reset")] * 3, ("truncated", "stream_truncated")]


def test_a_header_of_an_engine_writes_no_other(ready: tuple[RouterProcess, FakeEngine]) -> None:
    router, engine = ready
    head = OK + b"set-cookie: a=b\r\nx-request-id: evil\r\nserver: x\r\nx-modelyard-version: other@v9\r\n"
    head += b"location: http://169.254.169.254/\r\nconnection: x-modelyard-version\r\nproxy-authenticate: Basic\r\n"
    engine.behave(raw=(head + SIZE + b"\r\n" + ANSWER).hex())
    headers = router.chat(headers={"x-request-id": "mine"}).headers
    assert set(headers) <= {
        "content-type",
        "content-length",
        "x-request-id",
        "x-modelyard-version",
        "x-modelyard-generation",
        "x-modelyard-attempts",
    }
    assert headers["x-request-id"] == "mine"
    assert headers["x-modelyard-version"] == "assistant@v1"


def test_an_endless_trailer_or_extension_ends_the_answer(ready: tuple[RouterProcess, FakeEngine]) -> None:
    router, engine = ready
    before = router.control.stats().resident_bytes
    for endless in (b"0\r\nx: " + b"y" * 3_000_000, b"5;" + b"y" * 3_000_000, b"0\r\n" + b"x: y\r\n" * 500_000):
        engine.behave(raw=(CHUNKED + CHUNK + endless).hex())
        with pytest.raises(httpx.RemoteProtocolError):
            router.chat()
    assert [(r.outcome, r.error) for r in router.records(3)] == [("truncated", "malformed_answer")] * 3
    assert router.control.stats().resident_bytes - before < 8 * 1024 * 1024
    assert router.control.stats().upstream_connections == 0


def test_an_answer_may_come_before_the_request_has_been_read(ready: tuple[RouterProcess, FakeEngine]) -> None:
    router, engine = ready
    body = b'{"model":"assistant","messages":[{"role":"user","content":"%b"}]}' % (b"w" * 20_000_000)
    early = b"HTTP/1.1 413 X\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    engine.behave(raw=early.hex(), raw_early=True)
    before = engine.stats()["connections_total"]
    raw = POST + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    assert STATUS.findall(exchange(router, raw)[0]) == [b"413"]
    engine.behave(raw="", raw_early=False)
    assert router.chat().status_code == 200
    until(lambda: len(engine.stats()["requests"]) >= 2)
    stats = engine.stats()
    assert len(re.findall("POST", str(stats["lines"]))) == 2  # the rest of the first was taken for no request
    sums = [one["body_sha256"] for one in stats["requests"]]
    assert hashlib.sha256(body).hexdigest() in sums
    assert stats["connections_total"] - before >= 2  # the next request went another way
    assert [record.status for record in router.records(2)] == [413, 200]
