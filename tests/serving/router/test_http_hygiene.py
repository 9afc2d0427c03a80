"""HTTP as nobody should send it: refused where two readers could disagree, served where one can not."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import time
from collections.abc import Callable

import pytest
from engines.fixtures import FakeEngine
from router_harness import PATIENCE_S, RouterProcess, until

Start = Callable[..., FakeEngine]
BODY = b'{"model":"assistant","messages":[]}'
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
SIZED = POST + b"content-length: %d\r\n" % len(BODY)
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
CLOSE = b"connection: close\r\n"
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
    "a length in hexadecimal": POST + b"content-length: 0x23\r\n\r\n" + BODY,
    "a negative length": POST + b"content-length: -1\r\n\r\n" + BODY,
    "an empty length": POST + b"content-length:\r\n\r\n" + BODY,
    "a length beyond 64 bits": POST + b"content-length: 18446744073709551651\r\n\r\n" + BODY,
    "a length with a vertical tab": POST + b"content-length: %d\x0b\r\n\r\n" % len(BODY) + BODY,
    "a length of 5,000 digits": POST + b"content-length: %b%d\r\n\r\n" % (b"0" * 5000, len(BODY)) + BODY,
    "chunks and then length": POST + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "chunked twice": POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "identity, then chunked": POST + b"transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a list with chunked last": POST + b"transfer-encoding: identity, chunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "compressed chunks": POST + b"transfer-encoding: gzip, chunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "chunked in quotes": POST + b'transfer-encoding: "chunked"\r\n\r\n' + CHUNK + b"0\r\n\r\n",
    "chunked with a parameter": POST + b"transfer-encoding: chunked;q=1\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "chunked behind a vertical tab": POST + b"transfer-encoding:\x0bchunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "an empty transfer coding": POST + b"transfer-encoding:\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST /v1/chat/completions HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n"
    + CHUNK
    + b"0\r\n\r\n",
    "a bare return in a value": b"GET /v1/models HTTP/1.1\r\nhost: x\r\na: b\rc: d\r\n\r\n",
    "a bare return in a name": b"GET /v1/models HTTP/1.1\r\nhost: x\r\na\rb: c\r\n\r\n",
    "a bare line feed in a head": b"GET /v1/models HTTP/1.1\r\nhost: x\r\na: b\nc: d\r\n\r\n",
    "a header without a name": b"GET /v1/models HTTP/1.1\r\nhost: x\r\n: b\r\n\r\n",
    "a space before the first header": b"GET /v1/models HTTP/1.1\r\n host: x\r\n\r\n",
    "a chunk size in hexadecimal notation": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with a sign": CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n",
    "a chunk size behind a space": CHUNKED + b" 5\r\nhello\r\n0\r\n\r\n",
    "a chunk with an extension that ends in a line feed": CHUNKED + b"5;a\nhello\r\n0\r\n\r\n",
    "a chunk that is longer than it says": CHUNKED + b"5\r\nhelloo\r\n0\r\n\r\n",
    "chunks that end in line feeds": CHUNKED + b"5\nhello\n0\n\n",
    "a trailer that ends in a line feed": CHUNKED + b"0\r\na: b\n\r\n",
    "HTTP/0.9 by name": b"GET /v1/models HTTP/0.9\r\nhost: x\r\n\r\n",
    "HTTP/1.2": b"GET /v1/models HTTP/1.2\r\nhost: x\r\n\r\n",
    "HTTP/2 by name": b"GET /v1/models HTTP/2.0\r\nhost: x\r\n\r\n",
    "a method in small letters": b"get /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "a tab after the method": b"GET\t/v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "a target that is no URL": b"GET v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "a tunnel by upgrade": b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: tcp\r\n\r\n",
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
    "the absolute form in capitals": b"GET HTTP://u:p@h/v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "empty lines before the request": b"\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "a body and an offer of HTTP/2": SIZED + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n" + BODY,
    "chunks and an offer of HTTP/2": CHUNKED[:-2]
    + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n"
    + CHUNK
    + b"0\r\n\r\n",
    "an offer of websockets": b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\n"
    b"upgrade: websocket\r\n\r\n",
    "an offer with the absolute form": b"GET http://h/v1/models HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n"
    b"upgrade: h2c\r\n\r\n",
    "extensions and trailers": CHUNKED + b"%x;a=b;c\r\n%b\r\n" % (len(BODY), BODY) + b"0;d\r\nx-t: u\r\n\r\n",
    "a chunk size with zeros before it": CHUNKED + b"0000" + CHUNK + b"0\r\n\r\n",
    "Chunked": POST + b"Transfer-Encoding:\t Chunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "letters of no alphabet in a value": b"GET /v1/models HTTP/1.1\r\nhost: x\r\na: \xff\xe9\r\n\r\n",
    "empty values": b"GET /v1/models HTTP/1.1\r\nhost: x\r\na:\r\nb: \r\nhost-: y\r\n\r\n",
    "HEAD": b"HEAD /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "an id that is none": b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-request-id: a\tb\r\n\r\n",
}


PROBE = b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-id: probe\r\n\r\n"
STATUS = re.compile(rb"HTTP/1\.1 (\d\d\d) ")


def exchange(router: RouterProcess, raw: bytes, *, split: int = 0) -> tuple[bytes, bool]:
    """What came back, and whether the router closed the connection. `split` sends so many bytes at a time."""
    received = b""
    with socket.create_connection(("127.0.0.1", router.port), timeout=PATIENCE_S) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for start in range(0, len(raw), split or len(raw)):
                client.sendall(raw[start : start + (split or len(raw))])
            while data := client.recv(65536):
                received += data
        except TimeoutError:
            return received, False
        except (ConnectionResetError, BrokenPipeError):
            pass
        return received, True


def whole(**headers: str) -> bytes:
    """A chat request with these headers and BODY."""
    lines = b"".join(b"%b: %b\r\n" % (k.replace("_", "-").encode(), v.encode()) for k, v in headers.items())
    return SIZED + lines + b"\r\n" + BODY


@pytest.fixture
def ready(router: RouterProcess, fake_engine: Start) -> tuple[RouterProcess, FakeEngine]:
    engine = fake_engine("--events", "2")
    router.serve(engine.port)
    return router, engine


@pytest.mark.parametrize("split", [0, 1])
def test_what_two_readers_could_read_differently_is_refused(
    ready: tuple[RouterProcess, FakeEngine], split: int
) -> None:
    router, engine = ready
    for name, raw in REFUSED.items():
        received, closed = exchange(router, raw + PROBE, split=split)
        assert received[:13] in (b"HTTP/1.1 400 ", b"HTTP/1.1 501 ", b"HTTP/1.1 505 "), (name, received)
        assert len(STATUS.findall(received)) == 1, name  # what follows is not taken for another request
        assert closed, name
        assert b'"invalid_request_error"' in received, name
    assert engine.stats()["lines"] == []
    records = router.records(len(REFUSED))
    assert len(records) == len(REFUSED)
    assert {(record.outcome, record.attempts) for record in records} == {("rejected", 0)}


def test_what_came_before_a_bad_request_is_answered_first(ready: tuple[RouterProcess, FakeEngine]) -> None:
    router, engine = ready
    good = SIZED + b"\r\n" + BODY + b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    for name, bad in REFUSED.items():
        received, closed = exchange(router, good + bad)
        assert STATUS.findall(received)[:2] == [b"200", b"200"], name
        assert len(STATUS.findall(received)) == 3, name
        assert closed, name
    assert len(engine.stats()["lines"]) == len(REFUSED)


@pytest.mark.parametrize("split", [0, 1, 7])
def test_what_is_only_unusual_is_served(ready: tuple[RouterProcess, FakeEngine], split: int) -> None:
    router, engine = ready
    for name, raw in SERVED.items():
        received, closed = exchange(router, raw + (b"" if name == "HTTP/1.0" else PROBE), split=split)
        assert received.startswith(b"HTTP/1.1 200 "), (name, received)
        assert b"a\tb" not in received
        assert closed, name
        assert len(STATUS.findall(received)) == (1 if name == "HTTP/1.0" else 2), (name, received)
    posts = [name for name, raw in SERVED.items() if raw.startswith(b"POST")]
    seen = engine.stats()
    assert seen["lines"] == ["POST /v1/chat/completions HTTP/1.1"] * len(posts)
    assert {one["body"].encode() for one in seen["requests"]} == {BODY}
    assert {record.outcome for record in router.records(len(posts))} == {"completed"}


def test_an_engine_sees_a_request_of_ours_and_none_of_the_clients_hops(ready: tuple[RouterProcess, FakeEngine]) -> None:
    router, engine = ready
    hops = {"te": "trailers", "keep_alive": "timeout=5", "proxy_authorization": "Basic c2VjcmV0", "trailer": "x-t"}
    kept = {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01", "accept": "*/*", "x_secret": "hunter2"}
    exchange(router, whole(**hops, **kept, connection="close", x_request_id="mine", forwarded="for=1.1.1.1"))
    exchange(router, whole(**kept, connection="Traceparent, close, content-length, host"))
    first, second = (dict(one["headers"]) for one in engine.stats()["requests"])
    own = {"host", "x-request-id", "content-length"}
    assert set(first) == own | {"traceparent", "accept"}
    assert set(second) == own | {"accept"}  # the client said that its traceparent is for this hop only
    assert first["host"] == f"127.0.0.1:{engine.port}"
    assert first["x-request-id"] == "mine"


@pytest.mark.parametrize("given", [b"a\tb", b"a b", b"\xff", b'a"b', b"x" * 129, b"", b"a/../b", b"a,b", b"{}"])
def test_a_request_id_that_could_write_a_header_or_a_log_line_is_replaced(
    ready: tuple[RouterProcess, FakeEngine], given: bytes
) -> None:
    router, engine = ready
    raw = SIZED + b"connection: close\r\nx-request-id: " + given + b"\r\n\r\n" + BODY
    received, _ = exchange(router, raw)
    echoed = re.findall(rb"x-request-id: ([^\r]*)\r\n", received)
    assert len(echoed) == 1
    assert re.fullmatch(rb"req-[0-9a-f-]+", echoed[0])
    (seen,) = engine.stats()["requests"]
    assert dict(seen["headers"])["x-request-id"].encode() == echoed[0]
    assert router.records(1)[0].request_id.encode() == echoed[0]


def test_trailers_are_no_headers(ready: tuple[RouterProcess, FakeEngine]) -> None:
    router, engine = ready
    trailers = b"x-request-id: late\r\ntraceparent: late\r\nhost: late\r\n\r\n"
    received, _ = exchange(router, CHUNKED + CHUNK + b"0\r\n" + trailers + PROBE)
    assert STATUS.findall(received) == [b"200", b"200"]
    assert b"late" not in received
    (seen,) = engine.stats()["requests"]
    assert "late" not in str(seen["headers"])


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
    with socket.create_connection(("127.0.0.1", router.port), timeout=PATIENCE_S) as client:
        client.sendall(SIZED + b"expect: 100-continue\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(BODY)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_slow_heads_and_bodies_end_at_their_deadlines(router: RouterProcess, fake_engine: Start) -> None:
    from serving.router.table import Limits

    router.serve(fake_engine().port, limits=Limits(head_timeout_s=1.0, body_timeout_s=1.0))
    for beginning in (b"GET /v1/mod", SIZED + b"\r\n" + BODY[:5], CHUNKED + b"7fffffff\r\nabc"):
        with socket.create_connection(("127.0.0.1", router.port), timeout=PATIENCE_S) as client:
            client.sendall(beginning)
            assert client.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_a_trickle_ends_where_it_is_slower_than_a_kilobyte_a_second(router: RouterProcess, fake_engine: Start) -> None:
    from serving.router.table import Limits

    engine = fake_engine()
    router.serve(engine.port, limits=Limits(body_timeout_s=0.3))
    with socket.create_connection(("127.0.0.1", router.port), timeout=PATIENCE_S) as client:
        client.sendall(POST + b"content-length: 100000\r\n\r\n")
        client.settimeout(0.05)
        received, started = b"", time.monotonic()
        while not received and time.monotonic() - started < PATIENCE_S:  # all of it would take more than an hour
            client.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                received = client.recv(65536)
        assert received.startswith(b"HTTP/1.1 408 ")
    assert engine.stats()["lines"] == []
    assert [(r.outcome, r.error) for r in router.records(1)] == [("rejected", "request_timeout")]


@pytest.mark.parametrize(
    "endless",
    [
        CHUNKED + b"5;" + b"a" * 1_000_000,
        CHUNKED + CHUNK + b"0\r\nx: " + b"a" * 1_000_000,
        CHUNKED + CHUNK + b"0\r\n" + b"x: y\r\n" * 200_000,
        POST + b"x: y\r\n" * 200_000,
        POST + b"x: " + b"y" * 1_000_000,
        b"POST /" + b"y" * 1_000_000,
    ],
    ids=["extension", "trailer", "trailers", "headers", "header", "target"],
)
def test_what_is_neither_end_nor_body_is_bounded(ready: tuple[RouterProcess, FakeEngine], endless: bytes) -> None:
    router, engine = ready
    received, closed = exchange(router, endless)
    assert closed
    assert received.startswith(b"HTTP/1.1 431 ") or not received  # a reset may have taken the answer along
    assert engine.stats()["lines"] == []
    assert [(r.outcome, r.status) for r in router.records(1)] == [("rejected", 431)]


def test_giant_and_empty_bodies(router: RouterProcess, fake_engine: Start) -> None:
    from serving.router.table import Limits

    engine = fake_engine()
    router.serve(engine.port, limits=Limits(body_bytes_max=4096))
    giant = b"%x\r\n" % (2**63) + b"x" * 8192
    for raw, status, code in (
        (CHUNKED + giant, b"413", "request_too_large"),
        (CHUNKED + b"100\r\n%b\r\n" % (b"x" * 256) * 40, b"413", "request_too_large"),
        (POST + b"content-length: 9223372036854775807\r\n\r\n", b"413", "request_too_large"),
        (POST + CLOSE + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"400", "invalid_json"),
        (POST + CLOSE + b"content-length: 0\r\n\r\n", b"400", "invalid_json"),
        (POST + CLOSE + b"\r\n", b"400", "invalid_json"),
    ):
        received, _ = exchange(router, raw)
        assert STATUS.findall(received) == [status], raw[:200]
        assert code.encode() in received
    assert [r.status for r in router.records(6)] == [413, 413, 413, 400, 400, 400]
    assert engine.stats()["lines"] == []


def test_requests_ahead_of_an_answer_keep_their_order(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--first-byte-delay-s", "0.2")
    router.serve(engine.port)
    health = b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-request-id: %b\r\n\r\n"
    post = SIZED + b"x-request-id: %b\r\n\r\n" + BODY
    with socket.create_connection(("127.0.0.1", router.port), timeout=PATIENCE_S) as client:
        client.sendall(post % b"a" + health % b"b" + post.replace(b"host", b"Host") % b"c" + health % b"d")
        time.sleep(0.1)
        client.sendall(health % b"e" + post[:60])
        time.sleep(0.1)
        client.sendall(post[60:] % b"f" + health.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") % b"g")
        received = b""
        while data := client.recv(65536):
            received += data
    assert re.findall(rb"x-request-id: (\w)\r\n", received) == [b"a", b"b", b"c", b"d", b"e", b"f", b"g"]
    assert len(engine.stats()["lines"]) == 3


def test_a_large_body_may_follow_a_request_in_the_same_packet(ready: tuple[RouterProcess, FakeEngine]) -> None:
    router, engine = ready
    body = b'{"model":"assistant","messages":[{"role":"user","content":"%b"}]}' % (b"w" * 300_000)
    raw = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n" + POST + b"content-length: %d\r\n\r\n" % len(body)
    received, _ = exchange(router, raw + body + PROBE, split=4000)
    assert STATUS.findall(received) == [b"200", b"200", b"200"]
    assert engine.stats()["requests"][0]["body_sha256"] == hashlib.sha256(body).hexdigest()


def test_100_continue_waits_for_its_turn_and_is_not_said_to_http_1_0(router: RouterProcess, fake_engine: Start) -> None:
    router.serve(fake_engine("--first-byte-delay-s", "0.1").port)
    expecting = SIZED + b"expect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", router.port), timeout=PATIENCE_S) as client:
        client.sendall(SIZED + b"\r\n" + BODY + expecting)
        received = b""
        while b" 100 " not in received:
            received += client.recv(65536)
        assert STATUS.findall(received) == [b"200", b"100"]
        client.sendall(BODY)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    old = expecting.replace(b"HTTP/1.1", b"HTTP/1.0") + BODY
    assert STATUS.findall(exchange(router, old)[0]) == [b"200"]
    at_once = SIZED + CLOSE + b"expect: 100-continue\r\n\r\n" + BODY
    assert STATUS.findall(exchange(router, at_once)[0]) == [b"200"]  # the body is there already


def test_a_client_that_closes_its_sending_side_has_left(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--stall-after-events", "3")
    router.serve(engine.port)
    with socket.create_connection(("127.0.0.1", router.port), timeout=PATIENCE_S) as client:
        client.sendall(whole())
        until(lambda: engine.stats()["running"] == 1)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(65536) == b""
    with socket.create_connection(("127.0.0.1", router.port), timeout=PATIENCE_S) as client:
        client.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")  # what needs no engine is answered at once
    assert router.records(1)[0].outcome == "cancelled"
    until(lambda: engine.stats()["cancelled"] == 1)


def test_a_client_that_asks_and_never_reads_is_let_go(router: RouterProcess, fake_engine: Start) -> None:
    from serving.router.table import Limits

    engine = fake_engine("--events", "3000", "--word", "w" * 20_000)
    router.serve(engine.port, limits=Limits(unread_timeout_s=0.5))
    before = router.control.stats().resident_bytes
    stream = BODY[:-1] + b',"stream":true}'
    flood = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n" * 20_000
    for raw in (
        POST + b"content-length: %d\r\n\r\n" % len(stream) + stream,
        POST + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(stream) + stream,
        flood,
    ):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", router.port))
            client.settimeout(0.2)
            deadline = time.monotonic() + PATIENCE_S
            with contextlib.suppress(OSError):
                client.sendall(raw)
            while router.control.stats().connections:
                with contextlib.suppress(OSError):
                    client.send(flood)
                assert time.monotonic() < deadline, raw[:100]
    assert router.control.stats().resident_bytes - before < 16 * 1024 * 1024
    assert router.control.stats().inflight == {}
    outcomes = [r.outcome for r in router.records(2)]
    assert outcomes == ["cancelled", "cancelled"]
    until(lambda: engine.stats()["running"] == 0)


def test_methods_that_are_not_taken_say_which_are(ready: tuple[RouterProcess, FakeEngine]) -> None:
    router, engine = ready
    for line, allowed in ((b"HEAD /v1/chat/completions", b"POST"), (b"DELETE /v1/models", b"GET, HEAD")):
        received, _ = exchange(router, line + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert received.startswith(b"HTTP/1.1 405 ")
        assert b"\r\nallow: " + allowed + b"\r\n" in received
        assert (b"error" in received) == (not line.startswith(b"HEAD"))
    for line in (b"OPTIONS *", b"TRACE /", b"GET /v1/chat/completions/../models", b"GET //v1/models"):
        received, _ = exchange(router, line + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncookie: c=d\r\n\r\n")
        assert received.startswith(b"HTTP/1.1 404 "), line
        assert b"c=d" not in received
    assert engine.stats()["lines"] == []
