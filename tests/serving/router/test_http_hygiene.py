"""HTTP as nobody should send it: refused where two readers could disagree, served where one can not."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable

import pytest
from engines.fixtures import FakeEngine
from router_harness import RouterProcess

Start = Callable[..., FakeEngine]
BODY = b'{"model":"assistant","messages":[]}'
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
SIZED = POST + b"content-length: %d\r\n" % len(BODY)
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%b\r\n" % (len(BODY), BODY)

REFUSED = {
    "length and chunks": POST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "two lengths": SIZED + b"content-length: 3\r\n\r\n" + BODY,
    "one length twice": SIZED + b"content-length: %d\r\n\r\n" % len(BODY) + BODY,
    "length with a sign": POST + b"content-length: +%d\r\n\r\n" % len(BODY) + BODY,
    "a list of lengths": POST + b"content-length: %d, %d\r\n\r\n" % (len(BODY), len(BODY)) + BODY,
    "unknown transfer coding": POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked is not last": POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a space before the colon": POST + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    "bare line feeds": b"GET /v1/models HTTP/1.1\nhost: x\n\n",
    "a folded header": b"GET /v1/models HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n",
    "a zero byte in a header": b"GET /v1/models HTTP/1.1\r\nhost: x\r\na: b\0c\r\n\r\n",
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v1/models HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "two sessions": SIZED + b"x-session-id: a\r\nx-session-id: b\r\n\r\n" + BODY,
    "a chunk beyond 64 bits": CHUNKED + b"ffffffffffffffff1\r\n",
    "a control character in the target": b"GET /v1/models?\x0b HTTP/1.1\r\nhost: x\r\n\r\n",
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
    "a preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a tunnel": b"CONNECT a:80 HTTP/1.1\r\nhost: x\r\n\r\n",
}
SERVED = {
    "chunks": CHUNKED + CHUNK + b"0\r\n\r\n",
    "many small chunks": CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n",
    "HTTP/1.0": b"GET /v1/models HTTP/1.0\r\n\r\n",
    "the absolute form": b"GET http://anywhere:80/v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "an offer of HTTP/2": b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    "a body with a GET": b"GET /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello",
    "an id that is none": b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-request-id: a\tb\r\n\r\n",
}


def exchange(router: RouterProcess, raw: bytes) -> tuple[bytes, bool]:
    """What came back, and whether the router closed the connection."""
    received = b""
    with socket.create_connection(("127.0.0.1", router.port), timeout=0.7) as client:
        client.sendall(raw)
        try:
            while data := client.recv(65536):
                received += data
        except TimeoutError:
            return received, False
        return received, True


@pytest.fixture
def ready(router: RouterProcess, fake_engine: Start) -> tuple[RouterProcess, FakeEngine]:
    engine = fake_engine("--events", "2")
    router.serve(engine.port)
    return router, engine


def test_what_two_readers_could_read_differently_is_refused(ready: tuple[RouterProcess, FakeEngine]) -> None:
    router, engine = ready
    for name, raw in REFUSED.items():
        received, closed = exchange(router, raw + b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        assert received[:13] in (b"HTTP/1.1 400 ", b"HTTP/1.1 501 ", b"HTTP/1.1 505 "), (name, received)
        assert len(re.findall(rb"HTTP/1.1 \d\d\d ", received)) == 1, (
            name
        )  # what follows is not taken for another request
        assert closed, name
        assert b'"invalid_request_error"' in received, name
    assert engine.stats()["seen"] == 0
    assert {record.outcome for record in router.records(len(REFUSED))} == {"rejected"}


def test_what_came_before_a_bad_request_is_answered_first(ready: tuple[RouterProcess, FakeEngine]) -> None:
    router, _ = ready
    good = SIZED + b"\r\n" + BODY + b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    for name, bad in REFUSED.items():
        received, closed = exchange(router, good + bad)
        assert re.findall(rb"HTTP/1.1 (\d\d\d) ", received) [:2] == [b"200", b"200"], name
        assert closed, name


def test_what_is_only_unusual_is_served(ready: tuple[RouterProcess, FakeEngine]) -> None:
    router, _ = ready
    for name, raw in SERVED.items():
        received, _ = exchange(router, raw)
        assert received.startswith(b"HTTP/1.1 200 "), (name, received)
        assert b"a\tb" not in received


def test_a_stream_for_http_1_0_ends_with_the_connection(ready: tuple[RouterProcess, FakeEngine]) -> None:
    router, _ = ready
    body = BODY[:-1] + b',"stream":true}'
    raw = b"POST /v1/chat/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    received, closed = exchange(router, raw)
    assert closed
    assert b"transfer-encoding" not in received
    assert received.endswith(b"data: [DONE]\n\n")


def test_100_continue_is_said_before_the_body_is_sent(ready: tuple[RouterProcess, FakeEngine]) -> None:
    router, _ = ready
    with socket.create_connection(("127.0.0.1", router.port), timeout=5) as client:
        client.sendall(SIZED + b"expect: 100-continue\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(BODY)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_slow_heads_and_bodies_end_at_their_deadlines(router: RouterProcess, fake_engine: Start) -> None:
    from serving.router.table import Limits

    router.serve(fake_engine().port, limits=Limits(head_timeout_s=0.3, body_timeout_s=0.3))
    for beginning in (b"GET /v1/mod", SIZED + b"\r\n" + BODY[:5], CHUNKED + b"7fffffff\r\nabc"):
        with socket.create_connection(("127.0.0.1", router.port), timeout=5) as client:
            client.sendall(beginning)
            assert client.recv(65536).startswith(b"HTTP/1.1 408 ")
