"""An engine that misbehaves on demand: a real process that speaks the OpenAI API and counts what it did.

    python tests/engines/fake_engine.py --port 0 --events 8 --gap-s 0.01 --die-after-events 3

It prints `listening on 127.0.0.1:PORT` once it accepts connections. Owns: exactly countable answers (N events of one
token each), honest statistics at `/fake/stats`, and every fault that the flags name. `POST /fake/behave` with a JSON
object of the same names (underscores) changes them while it runs. Never: a model; nothing here imports the project.

One token is one word: a request's prompt tokens are the words of its messages or prompt, its completion tokens are the
events sent. Where the last message is the assistant's, its words are continued: the next event follows their count.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import fake_endpoints as others

Json = dict[str, Any]
ACCOUNTED = {"/v1/chat/completions", "/v1/completions", *others.TYPED, *others.PLAIN}
LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""Where a request says how many tokens it wants at most."""


@dataclass
class Behaviour:
    """What it does with a request. Every field is a flag and a key of `/fake/behave`."""

    events: int = 8
    """Tokens of an answer, one event each; a request's max_tokens may end it earlier."""
    gap_s: float = 0.0
    """Wait before every token after the first."""
    first_byte_delay_s: float = 0.0
    """Wait before the first byte of an answer, its head included."""
    first_token_delay_s: float = 0.0
    """Wait between a stream's head and its first token."""
    status: int = 200
    """Completions answer with this status; other than 2xx means an OpenAI error body."""
    status_times: int = 0
    """How many requests get `status` before it is 200 again; 0 means all."""
    retry_after_s: int = 0
    """Sent as Retry-After with an error status where it is not 0."""
    error_code: str = ""
    """The `code` of the OpenAI error that goes with `status`, e.g. content_filter; the status itself where empty."""
    error_type: str = ""
    """Its `type`; by the status where empty."""
    error_message: str = "the fake engine was told to fail"
    finish_reason: str = ""
    """What answers end with, e.g. content_filter; stop or length where empty."""
    context_tokens: int = 0
    """A longer prompt gets 400 context_length_exceeded; 0 takes every length."""
    die_after_events: int = -1
    """The process kills itself (SIGKILL) after this many tokens of one answer."""
    cut_after_events: int = -1
    """The connection is closed after this many tokens, without finish reason or [DONE]."""
    end_after_events: int = -1
    """A stream ends in good HTTP after this many tokens, but without finish reason or [DONE]."""
    stall_after_events: int = -1
    """Nothing more is sent after this many tokens; the connection stays open."""
    usage: str = "openai"
    """openai: as stream_options asks; always; none; last-chunk: on the chunk with the finish reason (llama.cpp)."""
    health_status: int = 200
    split_bytes: int = 0
    """Bytes of a stream are written in pieces of this size, one a loop turn; 0 writes each event whole."""
    close_after_s: float = 0.0
    """An idle keep-alive connection is closed after this time; 0 keeps it."""
    close_each: bool = False
    """Answers with `Connection: close`."""
    raw: str = ""
    """Answers with these bytes (hexadecimal) in place of HTTP of its own."""
    raw_early: bool = False
    """`raw` is sent as soon as a request's head is there; its body is then read half a second later."""
    raw_close: bool = False
    """The connection is closed after `raw`."""
    garbage: bool = False
    """Answers with bytes that are not HTTP."""
    word: str = "t"
    """Token i reads WORDi; a long one makes large events."""
    reject_prefill: bool = False
    """400 for a last message that is the assistant's, as engines say that cannot continue one."""
    hang_at_end: bool = False
    """A stream that has said its finish reason and usage neither says [DONE] nor ends."""
    error_event_after_events: int = -1
    """A streamed error object follows this many tokens (as engines send when generation fails), then the end."""


@dataclass
class Seen:
    """One completion or embedding request and how it ended; times in Unix seconds."""

    id: int
    path: str
    model: str
    stream: bool
    include_usage: bool
    at: float
    headers: list[list[str]]
    body_sha256: str
    body: str
    outcome: str = "running"
    """running, complete, cancelled (the client went away), failed (an error status), cut"""
    ended_at: float = 0.0
    prompt_tokens: int = 0
    events_sent: int = 0


@dataclass
class State:
    names: list[str]
    behaviour: Behaviour
    requests: collections.deque[Seen] = field(default_factory=lambda: collections.deque(maxlen=20_000))
    lines: collections.deque[str] = field(default_factory=lambda: collections.deque(maxlen=20_000))
    """The request line of whatever came, its own `/fake/` requests left out."""
    seen: int = 0
    connections: int = 0
    connections_total: int = 0
    statuses_given: int = 0

    def stats(self) -> Json:
        """Counts over all requests, the usage reported for the complete ones, and each request."""
        done = [r for r in self.requests if r.outcome == "complete"]
        cancelled = [r for r in self.requests if r.outcome == "cancelled"]
        usage = usage_of(sum(r.prompt_tokens for r in done), sum(r.events_sent for r in done))
        return {
            "pid": os.getpid(),
            "seen": self.seen,
            "lines": list(self.lines),
            "complete": len(done),
            "cancelled": len(cancelled),
            "running": sum(r.outcome == "running" for r in self.requests),
            "usage": usage,
            "cancelled_completion_tokens": sum(r.events_sent for r in cancelled),
            "connections": self.connections,
            "connections_total": self.connections_total,
            "requests": [asdict(r) for r in self.requests],
        }


def usage_of(prompt: int, completion: int) -> Json:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def text_of(content: Any) -> str:
    """The text of a message's content: a string, or a list of parts."""
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def prompt_of(body: Json) -> str:
    if "messages" in body:
        return " ".join(text_of(m.get("content")) for m in body["messages"])
    prompt = body.get("prompt", body.get("input", ""))
    return " ".join(map(str, prompt)) if isinstance(prompt, list) else str(prompt)


def prefilled(body: Json) -> int:
    """Words of a last message that is the assistant's: the answer goes on after them."""
    messages = body.get("messages") or [{}]
    return len(text_of(messages[-1].get("content")).split()) if messages[-1].get("role") == "assistant" else 0


class Connection(asyncio.Protocol):
    """One client connection: parses requests one after another and notices at once when the client goes away."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.buffer = bytearray()
        self.task: asyncio.Task[None] | None = None
        self.idle: asyncio.TimerHandle | None = None
        self.writable = asyncio.Event()
        self.writable.set()
        self.answered_early = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.state.connections += 1
        self.state.connections_total += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.state.connections -= 1
        self.writable.set()
        if self.idle is not None:
            self.idle.cancel()
        if self.task is not None:
            self.task.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.next_request()

    def next_request(self) -> None:
        """Take one whole request off the buffer, if there is one and none is being answered."""
        if self.task is not None or b"\r\n\r\n" not in self.buffer:
            return
        head, _, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = [[name.strip().lower(), value.strip()] for name, _, value in (line.partition(":") for line in lines)]
        found = {str(name): value for name, value in headers}
        if self.state.behaviour.raw_early and "POST /v1/" in first and not self.answered_early:
            self.answered_early = True
            self.transport.write(bytes.fromhex(self.state.behaviour.raw))
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(0.5, self.read_on)
        if found.get("transfer-encoding", "").lower() == "chunked":
            if not rest.endswith(b"0\r\n\r\n"):
                return
            body, used = dechunked(rest), len(rest)
        else:
            used = int(found.get("content-length", "0"))
            if len(rest) < used:
                return
            body = rest[:used]
        self.buffer = bytearray(rest[used:])
        if self.idle is not None:
            self.idle.cancel()
        method, target, _ = first.split(" ", 2)
        if not target.startswith("/fake/"):
            self.state.lines.append(first)
        self.task = asyncio.get_running_loop().create_task(self.serve(method, target.partition("?")[0], headers, body))
        self.task.add_done_callback(self.served)

    def read_on(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def served(self, task: asyncio.Task[None]) -> None:
        self.task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            print(f"fake engine: {error!r}", file=sys.stderr, flush=True)
            self.transport.abort()
        elif not self.transport.is_closing():
            if self.state.behaviour.close_after_s > 0:
                loop = asyncio.get_running_loop()
                self.idle = loop.call_later(self.state.behaviour.close_after_s, self.transport.close)
            self.next_request()

    async def write(self, data: bytes) -> None:
        """Write under backpressure; raises CancelledError by the task's cancellation where the client is gone."""
        size = self.state.behaviour.split_bytes or len(data)
        for start in range(0, len(data), max(size, 1)):
            self.transport.write(data[start : start + size])
            if self.state.behaviour.split_bytes:
                await asyncio.sleep(0)
            await self.writable.wait()

    async def answer(self, status: int, value: Any, extra: str = "") -> None:
        kind = "application/json"
        if isinstance(value, str):
            body, kind = value.encode(), "text/plain"
        elif isinstance(value, bytes):
            body, kind = value, "audio/mpeg"
        else:
            body = json.dumps(value).encode()
        close = "Connection: close\r\n" if self.state.behaviour.close_each else ""
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{close}{extra}\r\n"
        await self.write(head.encode() + body)
        if close:
            self.transport.close()

    async def serve(self, method: str, path: str, headers: list[list[str]], body: bytes) -> None:
        state = self.state
        if path == "/health":
            await self.answer(state.behaviour.health_status, {"status": "ok"})
        elif path == "/v1/models":
            data = [{"id": name, "object": "model", "created": 0, "owned_by": "fake"} for name in state.names]
            await self.answer(200, {"object": "list", "data": data})
        elif path == "/fake/stats":
            await self.answer(200, state.stats())
        elif path == "/fake/last":
            last = [asdict(request) for request in list(state.requests)[-2:]]
            await self.answer(200, {"seen": state.seen, "lines": list(state.lines)[-2:], "requests": last})
        elif path == "/fake/behave" and method == "POST":
            state.statuses_given = 0
            for name, value in json.loads(body).items():
                assert hasattr(state.behaviour, name), name
                setattr(state.behaviour, name, value)
            await self.answer(200, asdict(state.behaviour))
        elif path in ACCOUNTED and method == "POST":
            await self.accounted(path, headers, body)
        else:
            await self.answer(404, error_body(404, f"no {method} {path} here"))

    async def accounted(self, path: str, headers: list[list[str]], raw: bytes) -> None:
        """Answer a request and note how it ended."""
        state = self.state
        state.seen += 1
        try:
            body = json.loads(raw)
        except ValueError:
            body = {}
        options = body.get("stream_options") or {}
        entry = Seen(
            id=state.seen,
            path=path,
            model=str(body.get("model", "")),
            stream=bool(body.get("stream")),
            include_usage=bool(options.get("include_usage")),
            at=time.time(),
            headers=headers,
            body_sha256=hashlib.sha256(raw).hexdigest(),
            body=raw[:65536].decode("utf-8", "replace"),
            prompt_tokens=len(prompt_of(body).split()),
        )
        state.requests.append(entry)
        try:
            if state.behaviour.raw:
                await self.answer_raw(state.behaviour)
                entry.outcome = "complete"
            else:
                entry.outcome = await self.completion(path, body, entry, raw)
        except asyncio.CancelledError:
            entry.outcome = "cancelled"
            raise
        finally:
            entry.ended_at = time.time()

    async def answer_raw(self, how: Behaviour) -> None:
        if not how.raw_early:
            await self.write(bytes.fromhex(how.raw))
        self.answered_early = False
        if how.raw_close:
            self.transport.close()

    async def completion(self, path: str, body: Json, entry: Seen, raw: bytes) -> str:
        """Answer as the behaviour says; returns the outcome."""
        how = self.state.behaviour
        await asyncio.sleep(how.first_byte_delay_s)
        if how.garbage:
            await self.write(b"\x16\x03 this is not HTTP\r\n\r\n")
            self.transport.close()
            return "failed"
        if await self.refused(entry, prefilled(body)):
            return "failed"
        if path in others.PLAIN:
            await self.answer(200, others.plain(path, entry.model, entry.prompt_tokens, raw))
            return "complete"
        limit = next((body[name] for name in LIMITS if body.get(name)), how.events)
        count = min(how.events, int(limit))
        finish = how.finish_reason or ("stop" if count == how.events else "length")
        if entry.stream:
            return await self.stream(path, body, entry, count, finish)
        texts: list[str] = []
        for text in self.tokens(body, count):
            if texts:
                await asyncio.sleep(how.gap_s)
            texts.append(text)
            entry.events_sent += 1
            if (fault := await self.fault(entry)) is not None:
                return fault
        if path in others.TYPED:
            usage = others.usage_of(path, entry.prompt_tokens, count)
            answer = others.whole(path, entry.model, "".join(texts), finish, usage)
        else:
            answer = chunk(path, entry, "".join(texts), finish, whole=True)
            if how.usage != "none":
                answer["usage"] = usage_of(entry.prompt_tokens, count)
        await self.answer(200, answer)
        return "complete"

    async def refused(self, entry: Seen, prefill: int) -> bool:
        """Answer with an error where one is due; whether it was."""
        how, state = self.state.behaviour, self.state
        if how.status >= 300 and (how.status_times == 0 or state.statuses_given < how.status_times):
            state.statuses_given += 1
            extra = f"Retry-After: {how.retry_after_s}\r\n" if how.retry_after_s else ""
            error = error_body(how.status, how.error_message, kind=how.error_type, code=how.error_code)
            await self.answer(how.status, error, extra)
            return True
        if how.reject_prefill and prefill:
            await self.answer(400, error_body(400, "assistant prefill is not supported"))
            return True
        if how.context_tokens and entry.prompt_tokens > how.context_tokens:
            text = f"This model's maximum context length is {how.context_tokens} tokens, your messages have more."
            await self.answer(400, error_body(400, text, code="context_length_exceeded"))
            return True
        return False

    def tokens(self, body: Json, count: int) -> list[str]:
        start = prefilled(body)
        return [f"{' ' if i else ''}{self.state.behaviour.word}{i}" for i in range(start, start + count)]

    async def fault(self, entry: Seen) -> str | None:
        """The fault that is due after the tokens sent so far, if any."""
        how, sent = self.state.behaviour, entry.events_sent
        if sent == how.die_after_events:
            await asyncio.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        if sent == how.cut_after_events:
            self.transport.close()
            return "cut"
        if sent == how.stall_after_events:
            await asyncio.sleep(3600)
        return None

    async def stream(self, path: str, body: Json, entry: Seen, count: int, finish: str) -> str:
        how = self.state.behaviour
        close = "Connection: close\r\n" if how.close_each else ""
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n{close}\r\n"
        await self.write(head.encode())
        for event in opening(path, entry):
            await self.event(event)
        await asyncio.sleep(how.first_token_delay_s)
        if how.error_event_after_events == 0:
            await self.event(error_body(500, "the fake engine was told to fail in a stream"))
            await self.write(b"0\r\n\r\n")
            return "failed"
        for position, text in enumerate(self.tokens(body, count)):
            if position:
                await asyncio.sleep(how.gap_s)
            await self.event(others.delta(path, text) if path in others.TYPED else chunk(path, entry, text, None))
            entry.events_sent += 1
            if (fault := await self.fault(entry)) is not None:
                return fault
            if entry.events_sent == how.error_event_after_events:
                await self.event(error_body(500, "the fake engine was told to fail in a stream"))
                await self.write(b"0\r\n\r\n")
                return "failed"
            if entry.events_sent == how.end_after_events:
                await self.write(b"0\r\n\r\n")
                return "cut"
        for event in ending(how, path, entry, "".join(self.tokens(body, count)), finish):
            await self.event(event)
        if how.hang_at_end:
            await asyncio.sleep(3600)
        done = b"" if path in others.TYPED else framed(b"data: [DONE]\n\n")
        await self.write(done + b"0\r\n\r\n")
        if close:
            self.transport.close()
        return "complete"

    async def event(self, value: Json) -> None:
        name = f"event: {value['type']}\n" if "type" in value else ""
        await self.write(framed(f"{name}data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()))


def opening(path: str, entry: Seen) -> list[Json]:
    """The events of a stream before its first token."""
    if path in others.TYPED:
        return others.opening(path, entry.model, others.usage_of(path, entry.prompt_tokens, 0))
    return [chunk(path, entry, None, None)] if path == "/v1/chat/completions" else []


def ending(how: Behaviour, path: str, entry: Seen, text: str, finish: str) -> list[Json]:
    """The events of a stream after its last token, less `[DONE]`."""
    if path in others.TYPED:
        usage = others.usage_of(path, entry.prompt_tokens, entry.events_sent)
        return others.ending(path, entry.model, text, finish, usage)
    last, usage = chunk(path, entry, "", finish), usage_of(entry.prompt_tokens, entry.events_sent)
    events = [last | {"usage": usage} if how.usage == "last-chunk" else last]
    if how.usage == "always" or (entry.include_usage and how.usage == "openai"):
        events.append(last | {"choices": [], "usage": usage})
    return events


def framed(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def dechunked(data: bytes) -> bytes:
    """The bytes of a whole chunked body."""
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body, data = body + data[:length], data[length + 2 :]
        if length == 0:
            break
    return body


def error_body(status: int, message: str, *, kind: str = "", code: str = "") -> Json:
    kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code or status}}


def chunk(path: str, entry: Seen, text: str | None, finish: str | None, *, whole: bool = False) -> Json:
    """A chunk of a stream, or a whole answer. `text` None is the role chunk; a finish reason has an empty delta."""
    choice: Json = {"index": 0, "finish_reason": finish}
    if path == "/v1/completions":
        choice |= {"text": text or "", "logprobs": None}
        kind = "text_completion"
    elif whole:
        choice |= {"message": {"role": "assistant", "content": text}}
        kind = "chat.completion"
    else:
        first: Json = {"role": "assistant", "content": None}
        choice |= {"delta": first if text is None else {} if finish else {"content": text}}
        kind = "chat.completion.chunk"
    return {
        "id": f"fake-{entry.id}",
        "object": kind,
        "created": int(entry.at),
        "model": entry.model,
        "choices": [choice],
    }


async def serve(state: State, host: str, port: int, *, deaf: bool) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, (lambda: print("deaf to SIGTERM", flush=True)) if deaf else stop.set)
    server = await loop.create_server(lambda: Connection(state), host, port)
    print(f"listening on {host}:{server.sockets[0].getsockname()[1]}", flush=True)
    await stop.wait()
    server.close()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--name", action="append", help="a model name in /v1/models; repeatable (default: fake)")
    parser.add_argument("--start-delay-s", type=float, default=0.0, help="wait before listening")
    parser.add_argument("--exit-at-start", type=int, default=None, metavar="CODE", help="print log lines and exit")
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM and SIGINT")
    parser.add_argument("--child", action="store_true", help="start a grandchild process that sleeps for an hour")
    parser.add_argument("--nameless-child", action="store_true", help="the same, without our environment")
    for flag in fields(Behaviour):
        name = "--" + flag.name.replace("_", "-")
        if isinstance(flag.default, bool):
            parser.add_argument(name, action="store_true")
        else:
            parser.add_argument(name, type=type(flag.default), default=flag.default)
    return parser


def main() -> int:
    options = arguments().parse_args()
    time.sleep(options.start_delay_s)
    if options.exit_at_start is not None:
        print("loading the model\nerror: the fake model cannot be read", file=sys.stderr, flush=True)
        return int(options.exit_at_start)
    if options.child and os.fork() == 0:
        time.sleep(3600)
        return 0
    if options.nameless_child and os.fork() == 0:
        os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(3600)"], {})
    behaviour = Behaviour(**{flag.name: getattr(options, flag.name) for flag in fields(Behaviour)})
    state = State(options.name or ["fake"], behaviour)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(state, options.host, options.port, deaf=options.deaf))
    return 0


if __name__ == "__main__":
    sys.exit(main())
