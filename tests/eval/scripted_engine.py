"""An engine that knows GSM8K: right on some questions, wrong on the others, always the same, and it counts.

    python scripted_engine.py --port 9000 --data gsm8k_test.jsonl [--gap-s 0.002]

A process of its own, spoken to over HTTP like any other. Which questions it gets right depends on their text alone, so
that two runs must give the same table. GET /asked says how often each question was asked.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
from collections import Counter
from pathlib import Path

import httptools

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(event: object) -> bytes:
    data = b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


class Knowledge:
    """Question -> the answer that this engine gives."""

    def __init__(self, data: Path) -> None:
        rows = [json.loads(line) for line in data.read_text().splitlines()]
        self.answers = {row["question"]: row["answer"].rpartition("####")[2].strip() for row in rows}
        self.asked: Counter[str] = Counter()

    def answer(self, content: str) -> str:
        question = content if content in self.answers else next((q for q in self.answers if q in content), "")
        self.asked[question] += 1
        chance = hashlib.sha256(question.encode()).digest()[0]
        right = self.answers.get(question, "0").replace(",", "")
        return f"Step by step, it is {right if chance < 100 else int(right) + 1 + chance}."


class Connection(asyncio.Protocol):
    def __init__(self, knowledge: Knowledge, gap_s: float) -> None:
        self.knowledge, self.gap_s = knowledge, gap_s
        self.body, self.url = b"", b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        body, self.body = self.body, b""
        if not body:
            found = dict(self.knowledge.asked) if self.url == b"/asked" else {"object": "list", "data": []}
            data = json.dumps(found).encode()
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data))
            return
        words = self.knowledge.answer(json.loads(body)["messages"][-1]["content"]).split(" ")
        self.transport.write(HEAD)
        self.tick([f"{word} " for word in words], len(words))

    def tick(self, words: list[str], count: int) -> None:
        if self.transport.is_closing():
            return
        if words:
            self.transport.write(chunk({"choices": [{"delta": {"content": words[0]}}]}))
            asyncio.get_running_loop().call_later(self.gap_s, self.tick, words[1:], count)
            return
        usage = {"prompt_tokens": 20, "completion_tokens": count}
        last = {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": usage}
        self.transport.write(chunk(last) + chunk(b"[DONE]") + b"0\r\n\r\n")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--gap-s", type=float, default=0.002)
    options = parser.parse_args()
    knowledge = Knowledge(options.data)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(knowledge, options.gap_s), "127.0.0.1", options.port
    )
    await server.serve_forever()


asyncio.run(main())
