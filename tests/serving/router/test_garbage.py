"""A request leaves nothing to the garbage collector: whoever knows whom, the last reference goes when it ends.

What is left in cycles stays in memory with its body until a collection, and pushes the next requests out of the caches.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator

import msgspec
import pytest
from fuzz_seams import LIMITS, Bench, Recorder, bench
from router_harness import model, version

from serving.router.http1 import Client
from serving.router.table import Admission, Key, Table
from serving.router.upstream import Connection

SECRET = b"mya_secret"
BODY = b'{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}'
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
EVENTS = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b" % (len(EVENTS), EVENTS)
FAILURE = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
ANSWERS = {"whole": WHOLE, "stream": STREAM, "refused": FAILURE}


@pytest.fixture
def made() -> Iterator[Bench]:
    with bench() as found:
        yield found


def publish(made: Bench, *, requests_per_minute: int) -> None:
    """A table with everything on: a key with each limit, a bounded queue, stickiness, a cache of answers."""
    served = model([version("v1", [9])], {"v1": 10_000})
    admission = Admission(inflight_max=4, queue_max=4)
    served = msgspec.structs.replace(served, admission=admission, sticky=("header:x-session-id",))
    key = Key(
        id="key_1",
        digest=hashlib.sha256(SECRET).digest(),
        requests_per_minute=requests_per_minute,
        tokens_per_minute=10**9,
        concurrency_max=10,
        budget_tokens=10**9,
    )
    made.router.publish(Table(generation=2, models={"assistant": served}, keys=(key,), limits=LIMITS))


@pytest.mark.parametrize("kind", [*ANSWERS, "limited"])
def test_a_request_leaves_no_cycle(made: Bench, kind: str) -> None:
    publish(made, requests_per_minute=1 if kind == "limited" else 10**6)
    (backend,) = made.router._backends.values()
    engine = Connection(backend, lambda: made.clock)
    engine.connection_made(Recorder(made.loop, engine))
    engine.idle_until = made.clock + 60
    backend.keep(engine)
    client = Client(made.router)
    transport = Recorder(made.loop, client)
    client.connection_made(transport)
    stream = b',"stream":true' if kind == "stream" else b""
    body = b'{"model":"assistant","messages":[{"role":"user","content":"one two"}]%b}' % stream
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-session-id: s\r\nauthorization: Bearer %b\r\n" % SECRET

    def converse() -> None:
        client.data_received(head + b"content-length: %d\r\n\r\n%b" % (len(body), body))
        if engine._receiver is not None:
            engine.data_received(ANSWERS.get(kind, WHOLE))
        made.turn()

    for _ in range(5):
        converse()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            converse()
        left = gc.collect()
    finally:
        gc.enable()
    statuses = transport.sent.count(b"HTTP/1.1 ")
    assert statuses == 25
    assert left < 20, "less than one object a request"
