"""A request leaves nothing to the garbage collector: whoever knows whom, the last reference goes when it ends.

What is left in cycles stays in memory with its body until a collection, and pushes the next requests out of the caches.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
import pytest
from fuzz_seams import LIMITS, Bench, Recorder, bench
from router_harness import model, version

from serving.router.http1 import Client
from serving.router.table import Admission, Key, Retry, Table
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
    retry = Retry(backoff_s=0.001, backoff_max_s=0.002)
    served = msgspec.structs.replace(served, admission=admission, sticky=("header:x-session-id",), retry=retry)
    key = Key(
        id="key_1",
        digest=hashlib.sha256(SECRET).digest(),
        requests_per_minute=requests_per_minute,
        tokens_per_minute=10**9,
        concurrency_max=10,
        budget_tokens=10**9,
    )
    made.router.publish(Table(generation=2, models={"assistant": served}, keys=(key,), limits=LIMITS))


class Talk:
    """A client's requests to a bench with one replica, whose engine is played here."""

    def __init__(self, made: Bench, *, stream: bool = False) -> None:
        self.made = made
        (self.backend,) = made.router._backends.values()
        asks = b',"stream":true' if stream else b""
        self.body = b'{"model":"assistant","messages":[{"role":"user","content":"one two"}]%b}' % asks
        self.sent = 0

    def connect(self) -> tuple[Client, Recorder]:
        client = Client(self.made.router)
        transport = Recorder(self.made.loop, client)
        client.connection_made(transport)
        return client, transport

    def engine(self) -> Connection:
        """A connection to the engine, idle: the next request goes there."""
        engine = Connection(self.backend, lambda: self.made.clock)
        engine.connection_made(Recorder(self.made.loop, engine))
        engine.idle_until = self.made.clock + 60
        self.backend.keep(engine)
        return engine

    def ask(self, client: Client) -> None:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-session-id: s\r\nauthorization: Bearer %b\r\n"
        client.data_received(head % SECRET + b"content-length: %d\r\n\r\n%b" % (len(self.body), self.body))


def garbage_of(talk: Callable[[], None], times: int) -> list[str]:
    """The types of what `talk` leaves to the garbage collector, when had so many times."""
    for _ in range(5):
        talk()
    gc.collect()
    gc.disable()
    try:
        for _ in range(times):
            talk()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return [type(one).__name__ for one in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("kind", [*ANSWERS, "limited"])
def test_a_request_leaves_no_cycle(made: Bench, kind: str) -> None:
    publish(made, requests_per_minute=1 if kind == "limited" else 10**6)
    talk = Talk(made, stream=kind == "stream")
    client, transport = talk.connect()
    engine = talk.engine()

    def converse() -> None:
        talk.ask(client)
        if engine._receiver is not None:
            engine.data_received(ANSWERS.get(kind, WHOLE))
        made.turn()

    left = garbage_of(converse, 20)
    assert transport.sent.count(b"HTTP/1.1 ") == 25
    assert len(left) < 20, f"less than one object a request: {Counter(left)}"


BEGUN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
CUT = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (
    len(BEGUN),
    BEGUN,
)
ENDS: dict[str, Callable[[Talk, Connection, Recorder, Client], None]] = {
    "its client closes afterwards": lambda talk, engine, transport, client: engine.data_received(STREAM),
    "its engine resets before an answer": lambda talk, engine, transport, client: engine._transport.abort(),
    "its engine talks nonsense": lambda talk, engine, transport, client: engine.data_received(b"nonsense\r\n\r\n"),
    "its stream is cut": lambda talk, engine, transport, client: (
        engine.data_received(CUT),
        engine._transport.abort(),
    )[0],
    "its client leaves in the middle": lambda talk, engine, transport, client: (
        engine.data_received(CUT),
        transport.abort(),
    )[0],
    "its engine is silent": lambda talk, engine, transport, client: time_out(talk),
}


def time_out(talk: Talk) -> None:
    talk.made.clock += 400
    talk.made.router.sweep(talk.made.clock)


@pytest.mark.parametrize("ends", ENDS)
def test_a_connection_and_a_failure_leave_no_cycle(made: Bench, ends: str) -> None:
    publish(made, requests_per_minute=10**6)
    talk = Talk(made, stream=True)

    def converse() -> None:
        client, transport = talk.connect()
        engine = talk.engine()
        talk.ask(client)
        assert engine._receiver is not None
        ENDS[ends](talk, engine, transport, client)
        while made.router._exchanges:
            made.loop.run_until_complete(asyncio.sleep(0.001))
        transport.close()
        engine._transport.close()
        made.turn()
        made.clock += 100  # what the replica's breaker remembers is over
        made.router.sweep(made.clock)

    left = garbage_of(converse, 20)
    assert not made.router._clients
    assert len(left) < 20, f"less than one object a connection: {Counter(left)}"
