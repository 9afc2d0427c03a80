"""The soak's client: one request on one connection at a time, and a verdict on every answer.

Owns: reading HTTP answers, and what counts as right. Never: faults, figures. The engine (tests/engines/fake_engine.py)
answers `t0 t1 t2 …`, as many words as `max_tokens` says, so the client knows every answer to the last word.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import httptools

Verdict = Literal["right", "told", "left", "killed", "broken", "wrong"]
"""right:  whole, to the last word, with its usage and its end.
told:   incomplete, and the client was told so: an error status, or an error event after a right beginning.
left:   the client itself went away.
killed: the connection ended without a word, or there was none, as the worker had just been killed.
broken: the same for no such reason.
wrong:  anything else.
"""


@dataclass(slots=True)
class Ask:
    """One request, and what became of it."""

    id: str
    words: int
    stream: bool
    leaves_after: int = -1
    """The client goes away after so many events; -1: never."""
    pauses_s: float = 0.0
    """The client reads nothing for so long once the first event is there."""
    began: float = 0.0
    ended: float = 0.0
    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    head_id: str = ""
    complete: bool = False
    """HTTP says that the answer is whole."""
    failure: str = ""
    left: bool = False


def expected(words: int) -> str:
    return " ".join(f"t{number}" for number in range(words))


def judge(ask: Ask) -> tuple[Verdict, str]:
    """The verdict, and why where it is `wrong`."""
    if ask.left:
        return "left", ""
    if not ask.complete:
        return "broken", ask.failure
    if ask.head_id != ask.id:
        return "wrong", f"asked as {ask.id}, answered as {ask.head_id}"
    if ask.status != 200:
        return _judge_error(ask)
    return _judge_stream(ask) if ask.stream else _judge_whole(ask)


def _judge_error(ask: Ask) -> tuple[Verdict, str]:
    try:
        told = bool(json.loads(bytes(ask.body))["error"]["message"])
    except (ValueError, KeyError, TypeError):
        told = False
    if told and ask.status in (429, 500, 502, 503, 504):
        return "told", ""
    return "wrong", f"status {ask.status}: {bytes(ask.body[:300])!r}"


def _judge_whole(ask: Ask) -> tuple[Verdict, str]:
    try:
        answer = json.loads(bytes(ask.body))
        text, used = answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return "wrong", f"{error!r}: {bytes(ask.body[:300])!r}"
    if text == expected(ask.words) and used == ask.words:
        return "right", ""
    return "wrong", f"{ask.words} words asked, {used} counted: {text[:200]!r}"


def _judge_stream(ask: Ask) -> tuple[Verdict, str]:
    text, finish, error, done = "", "", False, False
    for event in bytes(ask.body).split(b"\n\n"):
        payload = event.removeprefix(b"data: ").strip()
        if not payload or payload.startswith(b":"):
            continue
        if payload == b"[DONE]":
            done = True
            continue
        try:
            value: dict[str, Any] = json.loads(payload)
        except ValueError:
            return "wrong", f"not an event: {payload[:200]!r}"
        error = error or "error" in value
        for choice in value.get("choices") or ():
            text += (choice.get("delta") or {}).get("content") or ""
            finish = choice.get("finish_reason") or finish
    whole = expected(ask.words)
    if error:
        return ("told", "") if whole.startswith(text) else ("wrong", f"an error after {text[-200:]!r}")
    if text == whole and finish and done:
        return "right", ""
    return "wrong", f"{ask.words} words asked, finish {finish!r}, done {done}: {text[:80]!r} … {text[-120:]!r}"


class Connection(asyncio.Protocol):
    """One connection to the router, which asks one thing after another."""

    def __init__(self, port: int, headers: Mapping[str, str]) -> None:
        self._head = "".join(f"{name}: {value}\r\n" for name, value in {"host": f"127.0.0.1:{port}", **headers}.items())
        self._ask: Ask | None = None
        self._over: asyncio.Future[None] | None = None
        self._paused = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    async def ask(self, ask: Ask) -> None:
        """Send it and wait until it is over; `ask` says how it ended."""
        assert self.transport is not None
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": "count for me"}],
            "max_tokens": ask.words,
            "stream": ask.stream,
        }
        data = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\n{self._head}content-type: application/json\r\n"
        head += f"x-request-id: {ask.id}\r\ncontent-length: {len(data)}\r\n\r\n"
        self._ask, self._over = ask, asyncio.get_running_loop().create_future()
        self._paused = False
        self._parser = httptools.HttpResponseParser(self)
        ask.began = time.time()
        self.transport.write(head.encode() + data)
        try:
            await self._over
        finally:
            ask.ended = time.time()
            self._ask = None

    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    # asyncio and the parser

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"not HTTP: {error}")
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._end(f"closed: {error}")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._ask is not None and name.lower() == b"x-request-id":
            self._ask.head_id = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._ask is not None:
            self._ask.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        ask = self._ask
        if ask is None:
            return
        ask.body += data
        if 0 <= ask.leaves_after <= ask.body.count(b"\n\n"):
            ask.left = True
            self._end("left")
            if self.transport is not None:
                self.transport.abort()
        elif ask.pauses_s and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(ask.pauses_s, self._read_on)

    def on_message_complete(self) -> None:
        if self._ask is not None:
            self._ask.complete = True
        self._end("")

    def _read_on(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def _end(self, failure: str) -> None:
        if self._ask is not None and self._over is not None and not self._over.done():
            self._ask.failure = failure
            self._over.set_result(None)
