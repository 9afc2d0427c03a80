"""A very quick engine for benchmarks: canned answers, so that what is measured is the router in front of it.

    python benchmarks/mock_engine.py --port 9101 --events 64 --gap-s 0.01

A whole answer has 100 completion tokens; a stream has `--events` events, one write each, `--gap-s` apart, then usage
where it is asked for. Never: used in tests of correctness (tests/engines/fake_engine.py is for those).
"""

from __future__ import annotations

import argparse
import asyncio
from typing import cast

import httptools
import uvloop

PROMPT_TOKENS = 20
COMPLETION_TOKENS = 100
CHUNK_HEAD = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":['
USAGE = b'"usage":{"prompt_tokens":20,"completion_tokens":%d,"total_tokens":%d}'


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


CONTENT = b"hello " * COMPLETION_TOKENS
ANSWER = whole(
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"' + CONTENT + b'"},"finish_reason":"stop"}],' + USAGE % (100, 120) + b"}"
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = chunked(CHUNK_HEAD + b'{"index":0,"delta":{"content":" hello"},"finish_reason":null}]}\n\n')
FINISH = chunked(CHUNK_HEAD + b'{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n')
DONE = chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"
MODELS = whole(b'{"object":"list","data":[{"id":"m","object":"model"}],"model_path":"m"}')


class Engine(asyncio.Protocol):
    """One connection."""

    def __init__(self, events: int, gap_s: float) -> None:
        self.events = events
        self.gap_s = gap_s
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""
        self.url = b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        body, self.body = self.body, b""
        if b'"messages"' not in body:
            self.transport.write(MODELS)
        elif b'"stream":true' in body:
            self.transport.write(STREAM_HEAD)
            self.tick(self.events, b"include_usage" in body)
        else:
            self.transport.write(ANSWER)

    def tick(self, left: int, usage: bool) -> None:
        if self.transport.is_closing():
            return
        if left:
            self.transport.write(EVENT)
            self.loop.call_later(self.gap_s, self.tick, left - 1, usage)
            return
        counts = USAGE % (self.events, self.events + PROMPT_TOKENS)
        self.transport.write(FINISH + (chunked(CHUNK_HEAD + b"]," + counts + b"}\n\n") if usage else b"") + DONE)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--events", type=int, default=64)
    parser.add_argument("--gap-s", type=float, default=0.01)
    options = parser.parse_args()
    server = await asyncio.get_running_loop().create_server(
        lambda: Engine(options.events, options.gap_s), "127.0.0.1", options.port
    )
    await server.serve_forever()


uvloop.run(main())
